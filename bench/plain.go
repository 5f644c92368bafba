package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// twoCores measures the proxy with bench/tcp or bench/http: a process of its own, since load and proxy have a core
// each.
func twoCores(name string) func(context.Context, *bench) ([]Row, error) {
	return func(ctx context.Context, b *bench) (rows []Row, err error) {
		err = temp(func(dir string) error {
			bin := filepath.Join(dir, name)
			if out, err := exec.CommandContext(ctx, "go", "build", "-o", bin, "./bench/"+name).CombinedOutput(); err != nil {
				return fmt.Errorf("build bench/%s: %w: %s", name, err, out)
			}
			rounds := b.size(12, 2)
			cmd := exec.CommandContext(ctx, bin, "-rounds", fmt.Sprint(rounds))
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			var exit *exec.ExitError
			if err != nil && (!errors.As(err, &exit) || !bytes.HasPrefix(out, []byte("{"))) {
				return fmt.Errorf("bench/%s: %w", name, err)
			}
			rows, err = plainRows(out, rounds)
			return err
		})
		return rows, err
	}
}

// plainRow is a line of bench/tcp or bench/http.
type plainRow struct {
	Name      string  `json:"name"`
	Value     float64 `json:"value"`
	Unit      string  `json:"unit"`
	Peer      string  `json:"peer"`
	PeerValue float64 `json:"peer_value"`
	Ratio     float64 `json:"ratio"`
	Spread    float64 `json:"spread"`
	CPU       float64 `json:"cpu"`
	PeerCPU   float64 `json:"peer_cpu"`
	Reach     float64 `json:"reach"`
}

// work is what one unit of a rate is; of a time, one request.
func work(unit string) string {
	if rate, ok := strings.CutSuffix(unit, "/s"); ok {
		return rate
	}
	return "request"
}

// plainRows makes of each line a ratio, which has the reach, and for information the CPU beside it.
func plainRows(out []byte, rounds int) ([]Row, error) {
	var rows []Row
	for line := range bytes.Lines(out) {
		var p plainRow
		if err := json.Unmarshal(line, &p); err != nil {
			return nil, fmt.Errorf("%q is no row: %w", line, err)
		}
		what := p.Name + "_" + strings.ToLower(strings.Fields(p.Peer)[0])
		r := Row{
			Name: what + "_ratio", Value: p.Ratio, Unit: "x", Peer: p.Peer, PeerValue: 1,
			Spread: fmt.Sprintf("n=%d quartiles %.3f apart", rounds, p.Spread),
			Note:   fmt.Sprintf("%s against %s %s", number(p.Value), number(p.PeerValue), p.Unit),
		}
		if p.Reach > 0 {
			r = r.atLeast(p.Reach)
		} else {
			r = r.told()
		}
		rows = append(rows, r, Row{
			Name: what + "_cpu", Value: p.CPU, Unit: "CPU s per " + work(p.Unit), Peer: p.Peer, PeerValue: p.PeerCPU,
		}.told())
	}
	return rows, nil
}
