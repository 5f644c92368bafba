package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// answer is what the process says to whoever connects: how the cables are, after the file was applied.
type answer struct {
	Wires []Report `json:"wires"`
	Error string   `json:"error,omitempty"`
}

// listen takes the place of a process that is no more.
func listen(socket string) (net.Listener, error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("socket of the wires: %w", err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// serve applies the file for each that connects.
func (p *Process) serve(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		var a answer
		if a.Wires, err = p.apply(); err != nil {
			a.Error = err.Error()
			p.Log.Warn("wires are not as asked for", "err", err)
		}
		c.SetDeadline(time.Now().Add(time.Second)) //nolint:errcheck // the write tells
		if err := json.NewEncoder(c).Encode(a); err != nil {
			p.Log.Warn("an answer was not taken", "err", err)
		}
		c.Close() //nolint:errcheck // it has its answer
	}
}

// Apply has the process make the cables what the file says, and returns how they are.
func Apply(ctx context.Context, socket string) ([]Report, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("the process of the wires does not answer: %w", err)
	}
	defer c.Close() //nolint:errcheck // only read
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	var a answer
	if err := json.NewDecoder(io.LimitReader(c, maxFile)).Decode(&a); err != nil {
		return nil, fmt.Errorf("the process of the wires: %w", err)
	}
	if a.Error != "" {
		return nil, fmt.Errorf("the process of the wires: %s", a.Error)
	}
	return a.Wires, nil
}
