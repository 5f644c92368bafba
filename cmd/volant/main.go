//go:build !manual

// Command volant is the whole platform in one binary: the server's processes and the client's verbs.
package main

import (
	"context"
	"os"
	"os/signal"
	"slices"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	g := &globals{}
	err := newRoot(g).ExecuteContext(ctx)
	stop()
	// The flags may be what is wrong.
	os.Exit(finish(os.Stderr, err, g.json || slices.Contains(os.Args, "--json")))
}
