// Package kerneltest gives tests a guest kernel: set up once for all tests of this user, with an
// init built of the source at hand.
package kerneltest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/volant-edge/volant/kernel"
	"github.com/volant-edge/volant/volanttest/need"
)

// Load returns the kernel; the test is skipped if it needs a download which fails.
func Load(t testing.TB) kernel.Kernel {
	t.Helper()
	need.Machine(t)
	init := Init(t)
	dir := need.Cache(t, "kernel")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close() }() // it holds no data
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	k, err := kernel.LoadInit(dir, init)
	if err == nil {
		return k
	}
	ctx, stop := context.WithTimeout(context.Background(), 5*time.Minute)
	defer stop()
	if err := kernel.Setup(ctx, dir, os.Getenv("VOLANT_KERNEL_DEB"), func(s string) { t.Log(s) }); err != nil {
		need.Unmet(t, "machine", err.Error())
	}
	if k, err = kernel.LoadInit(dir, init); err != nil {
		t.Fatal(err)
	}
	return k
}

// Init builds the guest's init.
func Init(t testing.TB) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "init")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, "github.com/volant-edge/volant/guest/cmd/init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOFLAGS=")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the guest's init: %v\n%s", err, msg)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
