package main

import (
	"time"

	"github.com/spf13/cobra"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/proxy"
)

func newProxy(g *globals) *cobra.Command {
	var level string
	var grace time.Duration
	cmd := &cobra.Command{
		Use: "proxy", Short: "Run the proxy of a server (the server starts it)", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLog(level)
			if err != nil {
				return err
			}
			late, err := time.ParseDuration(envOr("VOLANT_LATE", "0s"))
			if err != nil {
				return volant.Invalidf("VOLANT_LATE: %v", err)
			}
			return proxy.Main(cmd.Context(), proxy.Process{Data: g.data, Version: version(), Grace: grace, Late: late, Log: log})
		},
	}
	cmd.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error")
	cmd.Flags().DurationVar(&grace, "grace", 10*time.Second, "how long connections may go on after the proxy was asked to end")
	return cmd
}
