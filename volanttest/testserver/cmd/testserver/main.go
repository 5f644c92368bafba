// Command testserver runs package testserver in a machine, on the port that PORT says, or 8080.
//
// For deploys that must fail: TESTSERVER_EXIT=N ends it with that code at once, TESTSERVER_DELAY=2s
// makes it listen that much later, and TESTSERVER_DEAF=1 never.
//
// As a command beside it: testserver await FILE CODE writes "waiting" to stdout until the file is there, then "done"
// to stderr, and ends with the code; testserver touch FILE makes it.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/volant-edge/volant/volanttest/testserver"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "testserver:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	switch args := os.Args[1:]; {
	case len(args) == 3 && args[0] == "await":
		return await(ctx, args[1], args[2])
	case len(args) == 2 && args[0] == "touch":
		return os.WriteFile(args[1], nil, 0o600)
	}
	if v := os.Getenv("TESTSERVER_EXIT"); v != "" {
		code, err := strconv.Atoi(v)
		if err != nil {
			return err
		}
		fmt.Println("testserver ends as it was told")
		os.Exit(code)
	}
	if v := os.Getenv("TESTSERVER_DELAY"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil {
			return err
		}
		select {
		case <-time.After(d):
		case <-ctx.Done():
			return nil
		}
	}
	if os.Getenv("TESTSERVER_DEAF") != "" {
		<-ctx.Done()
		return nil
	}
	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	fmt.Println("testserver listens on", l.Addr())
	return new(testserver.Server).Serve(ctx, l)
}

// await ends the process with a code when a file is there.
func await(ctx context.Context, file, code string) error {
	n, err := strconv.Atoi(code)
	if err != nil {
		return err
	}
	fmt.Println("waiting")
	for _, err = os.Stat(file); err != nil; _, err = os.Stat(file) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	fmt.Fprintln(os.Stderr, "done")
	os.Exit(n)
	return nil
}
