package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/doctor"
	"github.com/volant-edge/volant/lab"
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
			found = append(found, labFinding())
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

// labFinding says whether a lab can be built here. A server serves without one, so that nothing is wrong if not.
func labFinding() doctor.Finding {
	f := doctor.Finding{Name: "lab", Status: doctor.OK, Found: "volant lab can build a planet here"}
	if err := lab.Check(); err != nil {
		f.Found = "not here: " + err.Error()
		if e, ok := errors.AsType[*volant.Error](err); ok {
			f.Found, f.Remedy = "not here: "+e.Text, e.Remedy
		}
	}
	return f
}

func doctorText(w io.Writer, found []doctor.Finding) {
	for _, f := range found {
		fmt.Fprintf(w, "%-5s %s: %s\n", f.Status, f.Name, f.Found)
		if f.Remedy != "" {
			fmt.Fprintf(w, "      %s\n", f.Remedy)
		}
	}
}
