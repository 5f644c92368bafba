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
	var app string
	var want client.Logs
	cmd := &cobra.Command{
		Use: "logs [APP]", Short: "Show what an app's machines print", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := appArg(app, args)
			if err != nil {
				return err
			}
			c, err := g.client()
			if err != nil {
				return err
			}
			enc := json.NewEncoder(cmd.OutOrStdout())
			err = c.Logs(cmd.Context(), name, want, func(e api.LogEntry) error {
				if g.json {
					return enc.Encode(e)
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s %s %s\n", e.Time.UTC().Format("2006-01-02T15:04:05.000Z"), e.Machine, e.Source, clean(e.Message, "\t"))
				return err
			})
			if errors.Is(err, context.Canceled) {
				return nil // the user has seen enough
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVarP(&app, "app", "a", "", "the app")
	f.StringVar(&want.Machine, "machine", "", "only this machine's")
	f.BoolVarP(&want.Follow, "follow", "f", false, "go on with new lines")
	f.IntVarP(&want.Tail, "tail", "n", 100, "start with that many past lines; destroyed machines have some for a week")
	f.StringVar(&want.Since, "since", "", "only lines since then: a time (RFC 3339), or how long ago, such as 10m")
	f.BoolVar(&want.NoEvents, "no-events", false, "leave out what the platform did (source volant)")
	return cmd
}
