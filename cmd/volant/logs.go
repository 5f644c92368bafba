package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/volant-edge/volant/api"
)

func newLogs(g *globals) *cobra.Command {
	var app, machine string
	var follow bool
	var tail int
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
			err = c.Logs(cmd.Context(), name, machine, tail, follow, func(e api.LogEntry) error {
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
	f.StringVar(&machine, "machine", "", "only this machine's")
	f.BoolVarP(&follow, "follow", "f", false, "go on with new lines")
	f.IntVarP(&tail, "tail", "n", 100, "start with that many of the last lines of each machine")
	return cmd
}
