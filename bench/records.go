package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// records measures what a machine on record costs while it sleeps, in a process of its own.
func records(ctx context.Context, b *bench) (rows []Row, err error) {
	err = temp(func(dir string) error {
		bin := filepath.Join(dir, "records")
		if out, err := exec.CommandContext(ctx, "go", "build", "-o", bin, "./bench/records").CombinedOutput(); err != nil {
			return fmt.Errorf("build bench/records: %w: %s", err, out)
		}
		cmd := exec.CommandContext(ctx, bin, "-n", fmt.Sprint(b.size(100_000, 5_000)))
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("bench/records: %w", err)
		}
		var r struct {
			Machines, Heap, Stack int64
		}
		if err := json.Unmarshal(out, &r); err != nil {
			return fmt.Errorf("bench/records: %q: %w", out, err)
		}
		rows = []Row{Row{
			Name: "machine_record_bytes", Value: float64(r.Heap+r.Stack) / float64(r.Machines), Unit: "bytes",
			Note: fmt.Sprintf("%d machines; of it %d on the heap after a collection, %d in stacks", r.Machines, r.Heap/r.Machines, r.Stack/r.Machines),
		}.atMost(4096)}
		return nil
	})
	return rows, err
}
