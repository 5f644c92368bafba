package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/cgroup"
	"github.com/volant-edge/volant/datadir"
	"github.com/volant-edge/volant/hostnet"
	"github.com/volant-edge/volant/mesh"
	"github.com/volant-edge/volant/microvm/qemu"
	"github.com/volant-edge/volant/proxy"
)

// Cleanup ends everything that a node made outside its data directory and returns what it ended, a line
// each. With the data directory gone, id names the node; else it may be empty.
func Cleanup(ctx context.Context, data, id string) (done []string, err error) {
	node, shmBase := volant.NodeID(id), "/dev/shm"
	if _, serr := os.Stat(data); serr == nil {
		dir, err := datadir.Open(data) // refuses while a server runs
		if err != nil {
			return nil, err
		}
		defer func() { _ = dir.Close() }() // only the lock
		node, shmBase = dir.Node(), keptShm(dir)
		lines, err := cleanupData(ctx, dir)
		done = append(done, lines...)
		if err != nil {
			return done, err
		}
	} else if node == "" {
		return nil, volant.Errorf(volant.ErrNotFound, "there is no data directory %s", data).WithRemedy("name the node with --node; taps and tables bear its ID")
	}
	removed, err := hostnet.Cleanup(ctx, node)
	errs := []error{err}
	tunnel, err := mesh.Cleanup(ctx, node)
	errs = append(errs, err)
	more, err := cgroup.Cleanup(ctx, node)
	errs = append(errs, err)
	for _, what := range slices.Concat(removed, tunnel, more) {
		done = append(done, "removed "+what)
	}
	shm := shmDir(shmBase, node)
	if _, err := os.Stat(shm); err == nil {
		errs = append(errs, os.RemoveAll(shm))
		done = append(done, "removed "+shm)
	}
	return done, errors.Join(errs...)
}

// cleanupData ends the VMMs and then the proxy that the data directory knows of; without machines its
// connections end by themselves.
func cleanupData(ctx context.Context, dir *datadir.Dir) (done []string, err error) {
	shm := shmDir(keptShm(dir), dir.Node())
	if _, err := os.Stat(shm); errors.Is(err, os.ErrNotExist) {
		if err := os.Mkdir(shm, 0o700); err != nil {
			return done, err
		}
		defer func() { _ = os.Remove(shm) }() // it was made for the engine alone
	}
	vm, err := dir.Sub("vm")
	if err != nil {
		return done, err
	}
	e, err := qemu.New(qemu.Config{Dir: vm, ShmDir: shm})
	if err != nil {
		return done, err
	}
	removed, err := e.Sweep(ctx, func(string) bool { return false })
	for _, r := range removed {
		done = append(done, "removed "+r)
	}
	if err := errors.Join(err, e.Close()); err != nil {
		return done, err
	}
	line, err := endProxy(ctx, dir)
	if line != "" {
		done = append(done, line)
	}
	if err != nil {
		return done, err
	}
	if line, err = endMesh(ctx, dir); line != "" {
		done = append(done, line)
	}
	return done, err
}

// endProxy asks the proxy to end and waits until it has.
func endProxy(ctx context.Context, dir *datadir.Dir) (string, error) {
	path, err := dir.Socket("proxy.sock")
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	c, err := proxy.Dial(ctx, path)
	if err != nil {
		return "", nil // none runs
	}
	defer func() { _ = c.Close() }() // it has ended
	h, err := c.Hello(ctx)
	if err != nil {
		return "", fmt.Errorf("proxy: %w", err)
	}
	if err := c.Shutdown(ctx); err != nil {
		return "", fmt.Errorf("end the proxy: %w", err)
	}
	select {
	case <-c.Done():
	case <-ctx.Done():
		return "", fmt.Errorf("the proxy, process %d, did not end: %w", h.PID, ctx.Err())
	}
	return fmt.Sprintf("ended the proxy, process %d", h.PID), nil
}

// shmDir is where the memory of a node's awake machines is.
func shmDir(base string, node volant.NodeID) string {
	return filepath.Join(base, "volant-"+string(node))
}
