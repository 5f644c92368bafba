package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/volant-edge/volant/node"
)

// newServerPoints lists the write-ahead points that VOLANT_CRASH can name.
func newServerPoints(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "points", Short: "List the write-ahead points of the host, for fault tests", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			points := node.CrashPoints()
			return g.print(cmd, points, func(w io.Writer) { fmt.Fprintln(w, strings.Join(points, "\n")) })
		},
	}
}

// crashPoint reads VOLANT_CRASH. POINT:before|after[:N] has the process kill itself the N-th time the host
// comes to that write-ahead point. @FILE has each point look into a file, which armed explains.
func crashPoint(s string) (func(point, when string), error) {
	if s == "" {
		return nil, nil
	}
	if file, ok := strings.CutPrefix(s, "@"); ok {
		return func(point, when string) { armed(file, point+":"+when) }, nil
	}
	parts := strings.Split(s, ":")
	times := 1
	if len(parts) == 3 {
		n, err := strconv.Atoi(parts[2])
		if err != nil || n < 1 {
			return nil, fmt.Errorf("VOLANT_CRASH=%q: %q is not a count", s, parts[2])
		}
		times = n
	}
	if len(parts) < 2 || len(parts) > 3 || parts[1] != "before" && parts[1] != "after" {
		return nil, fmt.Errorf("VOLANT_CRASH=%q: write POINT:before or POINT:after, and :N for the N-th time, or @FILE", s)
	}
	var seen atomic.Int64
	return func(point, when string) {
		if point == parts[0] && when == parts[1] && seen.Add(1) == int64(times) {
			crash(point + ":" + when)
		}
	}, nil
}

func crash(at string) {
	fmt.Fprintf(os.Stderr, "volant: crash asked for at %s\n", at)
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // nothing after this line runs
	select {}
}

// holdMost bounds how long a point is held.
const holdMost = time.Minute

// armed acts on a file which holds "POINT:WHEN kill" or "POINT:WHEN hold", at that point, once. The file is
// taken away then, so that who wrote it knows. Held is the goroutine that came to the point, until FILE.held,
// which takes the file's place, is gone too.
func armed(file, at string) {
	b, err := os.ReadFile(file)
	if err != nil {
		return
	}
	do, ok := strings.CutPrefix(strings.TrimSpace(string(b)), at+" ")
	if !ok {
		return
	}
	held := file + ".held"
	if err := os.Rename(file, held); err != nil {
		return // another goroutine was first
	}
	if do == "kill" {
		_ = os.Remove(held) // a file too many is no harm
		crash(at)
	}
	for deadline := time.Now().Add(holdMost); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if _, err := os.Stat(held); errors.Is(err, os.ErrNotExist) {
			return
		}
	}
}
