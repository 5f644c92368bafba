// Command testserver runs package testserver in a machine, on the port that PORT says, or 8080.
//
// For deploys that must fail: TESTSERVER_EXIT=N ends it with that code at once, TESTSERVER_DELAY=2s
// makes it listen that much later, and TESTSERVER_DEAF=1 never.
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
