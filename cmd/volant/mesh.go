package main

import (
	"github.com/spf13/cobra"

	"github.com/volant-edge/volant/mesh"
)

func newMesh(g *globals) *cobra.Command {
	var level string
	cmd := &cobra.Command{
		Use: "mesh", Short: "Run the WireGuard of a server where the kernel has none (the server starts it)", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLog(level)
			if err != nil {
				return err
			}
			return mesh.Main(cmd.Context(), mesh.Process{Data: g.data, Version: version(), Log: log})
		},
	}
	cmd.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error")
	return cmd
}
