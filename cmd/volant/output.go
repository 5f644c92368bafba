package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/appfile"
	"github.com/volant-edge/volant/client"
)

// exitCode ends the program with the code of a command that ran elsewhere, and says nothing.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// The codes the program ends with; `volant machine exec` ends with its command's.
const (
	exitFailed      = 1   // what was asked for did not come about
	exitUsage       = 2   // the command, its flags or the config file are wrong: nothing was changed
	exitInterrupted = 130 // as shells have it for Ctrl-C
)

// finish tells err, as JSON if asked to, and returns the program's exit code.
func finish(w io.Writer, err error, asJSON bool) int {
	var code exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case asJSON:
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		_ = enc.Encode(failure(err)) // a stream that is gone cannot be told so
	default:
		fmt.Fprintln(w, "volant:", clean(err.Error(), "\n\t"))
	}
	switch {
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.Is(err, volant.ErrInvalid):
		return exitUsage
	}
	return exitFailed
}

// failed is what --json says of an error, on standard error.
type failed struct {
	Error    string            `json:"error"`
	Status   string            `json:"status"` // as the API has it
	Remedy   string            `json:"remedy,omitempty"`
	Problems []appfile.Problem `json:"problems,omitempty"` // of a config file
	Release  *api.Release      `json:"release,omitempty"`  // that failed
	Logs     []api.LogEntry    `json:"logs,omitempty"`     // last lines of its machines
}

func failure(err error) failed {
	out := failed{Error: err.Error(), Status: client.Status(err)}
	if e, ok := errors.AsType[*volant.Error](err); ok && e.Remedy != "" {
		out.Error, out.Remedy = strings.TrimSuffix(out.Error, "; "+e.Remedy), e.Remedy
	}
	if e, ok := errors.AsType[*appfile.Error](err); ok {
		out.Problems, out.Remedy = e.Problems, e.Remedy
	}
	if e, ok := errors.AsType[*deployFailed](err); ok {
		out.Status, out.Release, out.Logs = "release_failed", &e.release, e.logs
	}
	return out
}

// say writes v as JSON when asked to, else what text writes.
func (c *call) say(v any, text func(w io.Writer)) error { return c.print(c.cmd, v, text) }

// sayDone says that something was done to what is named.
func (c *call) sayDone(verb, name, text string) error {
	return c.say(map[string]string{verb: name}, func(w io.Writer) { fmt.Fprintln(w, text) })
}

// sayRows writes a list: as JSON, or as rows under a head. A nil list is an empty one.
func sayRows[T any](c *call, list []T, head []string, row func(T) []string) error {
	if list == nil {
		list = []T{}
	}
	return c.say(list, func(w io.Writer) {
		rows := [][]string{head}
		for _, v := range list {
			rows = append(rows, row(v))
		}
		table(w, rows)
	})
}

// print writes v as JSON when asked to, else what text writes.
func (g *globals) print(cmd *cobra.Command, v any, text func(w io.Writer)) error {
	if !g.json {
		text(cleaner{cmd.OutOrStdout()})
		return nil
	}
	enc := json.NewEncoder(cmd.OutOrStdout())
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// table writes rows in columns; the first row is the head.
func table(w io.Writer, rows [][]string) {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, r := range rows {
		cells := make([]string, len(r))
		for i, c := range r {
			cells[i] = clean(c, "") // a line feed or tab would look like a row or column of ours
		}
		fmt.Fprintln(tw, strings.Join(cells, "\t"))
	}
	_ = tw.Flush() // a terminal that is gone takes no message either
}

// ago says how long ago t was, as people say it.
func ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := time.Since(t)
	switch {
	case d < 0:
		return "now"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours())/24)
}

// stamp writes a time as logs have it.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// size writes a number of bytes.
func size(n int64) string {
	switch {
	case n == 0:
		return "0"
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
}
