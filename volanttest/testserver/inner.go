package testserver

import (
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// inner is a connection of the server to itself and an open file, which tell if both survived a sleep.
type inner struct {
	mu   sync.Mutex // guards the fields
	echo *Echo
	file *os.File
	n    int
}

func (i *inner) step(self net.Addr) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	if err := i.open(self); err != nil {
		return "error " + err.Error()
	}
	if err := i.echo.Exchange(1000); err != nil {
		return "error connection: " + err.Error()
	}
	i.n++
	if _, err := fmt.Fprintln(i.file, i.n); err != nil {
		return "error file: " + err.Error()
	}
	return fmt.Sprintf("inner %d", i.n)
}

func (i *inner) open(self net.Addr) error {
	if i.echo != nil {
		return nil
	}
	_, port, err := net.SplitHostPort(self.String())
	if err != nil {
		return err
	}
	c, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", port), 10*time.Second)
	if err != nil {
		return err
	}
	if i.file, err = os.CreateTemp("", "inner"); err != nil {
		return err
	}
	i.echo, err = StartEcho(c, 7)
	return err
}
