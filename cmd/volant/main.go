// Command volant is the whole platform in one binary: the server's processes and the client's verbs.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := newRoot().ExecuteContext(ctx)
	var code exitCode
	if errors.As(err, &code) {
		stop()
		os.Exit(int(code)) //nolint:gocritic // stop was called; nothing else is deferred
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "volant:", clean(err.Error(), "\n\t"))
		stop()
		os.Exit(1)
	}
}

// exitCode ends the program with the code of a command that ran elsewhere, and says nothing.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }
