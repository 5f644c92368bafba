package daemon_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volant-edge/volant/internal/daemon"
)

func TestAProcessThatEndsTellsWhy(t *testing.T) {
	s := daemon.Start{
		Name: "test", Args: []string{"/bin/sh", "-c", "echo no such port; exit 3"}, Out: filepath.Join(t.TempDir(), "log"),
		Log: slog.New(slog.DiscardHandler), Place: func(int) error { return errors.New("no cgroup here") },
	}
	if err := os.WriteFile(s.Out, make([]byte, 9<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	exited, err := s.Run()
	if err != nil {
		t.Fatal(err)
	}
	err = daemon.Await(t.Context(), exited, func(context.Context) error { return errors.New("nobody answers") })
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "nobody answers") {
		t.Errorf("got %v", err)
	}
	if got := s.LastWords(); got != "no such port\n" {
		t.Errorf("its last words are %q", got)
	}
	if _, err := os.Stat(s.Out + ".1"); err != nil {
		t.Errorf("a log that had grown was not moved aside: %v", err)
	}
}

func TestAwaitAsksAgain(t *testing.T) {
	asked := 0
	err := daemon.Await(t.Context(), nil, func(context.Context) error {
		if asked++; asked < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	if err != nil || asked != 3 {
		t.Errorf("asked %d times, %v", asked, err)
	}
}
