package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/volant-edge/volant/doctor"
	"github.com/volant-edge/volant/node"
)

func newDoctor(g *globals) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "doctor", Short: "Say what this machine can do, and what is missing", Args: cobra.NoArgs,
		Long: `Say what this machine can do as a server, which engine would be picked and why, and what is missing, with the
remedy. Nothing is changed. The exit code is 1 if something keeps machines from running.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := readConfig(file)
			if err != nil {
				return err
			}
			if cfg.Data == "" || cmd.Flags().Changed("data") {
				cfg.Data = g.data
			}
			found, err := node.Doctor(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			if err := g.print(cmd, found, func(w io.Writer) { doctorText(w, found) }); err != nil {
				return err
			}
			if doctor.Failed(found) {
				return exitCode(1)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "server configuration, a TOML file")
	return cmd
}

func doctorText(w io.Writer, found []doctor.Finding) {
	for _, f := range found {
		fmt.Fprintf(w, "%-5s %s: %s\n", f.Status, f.Name, f.Found)
		if f.Remedy != "" {
			fmt.Fprintf(w, "      %s\n", f.Remedy)
		}
	}
}
