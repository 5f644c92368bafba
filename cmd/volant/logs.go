package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/client"
)

func newLogs(g *globals) *cobra.Command {
	var want client.Logs
	cmd := g.askApp("logs [APP]", "Show what an app's machines print", func(c *call, app string) error {
		enc := json.NewEncoder(c.cmd.OutOrStdout())
		err := c.Logs(c.ctx, app, want, func(e api.LogEntry) error {
			if c.json {
				return enc.Encode(e)
			}
			_, err := fmt.Fprintln(c.cmd.OutOrStdout(), logLine(e))
			return err
		})
		if errors.Is(err, context.Canceled) {
			return nil // the user has seen enough
		}
		return err
	})
	f := cmd.Flags()
	f.StringVar(&want.Machine, "machine", "", "only this machine's")
	f.BoolVarP(&want.Follow, "follow", "f", false, "go on with new lines")
	f.IntVarP(&want.Tail, "tail", "n", 100, "start with that many past lines; destroyed machines have some for a week")
	f.StringVar(&want.Since, "since", "", "only lines since then: a time (RFC 3339), or how long ago, such as 10m")
	f.BoolVar(&want.NoEvents, "no-events", false, "leave out what the platform did (source volant)")
	return cmd
}

func logLine(e api.LogEntry) string {
	return fmt.Sprintf("%s %s %s %s", stamp(e.Time), e.Machine, e.Source, clean(e.Message, "\t"))
}
