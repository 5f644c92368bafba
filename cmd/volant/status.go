package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/volant-edge/volant/api"
)

func newStatus(g *globals) *cobra.Command {
	var app string
	cmd := &cobra.Command{
		Use: "status [APP]", Short: "Show an app, its addresses and machines", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := appArg(app, args)
			if err != nil {
				return err
			}
			c, err := g.client()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			a, err := c.App(ctx, name)
			if err != nil {
				return err
			}
			scale, err := c.Scale(ctx, name)
			if err != nil {
				return err
			}
			machines, err := c.Machines(ctx, name)
			if err != nil {
				return err
			}
			all := struct {
				App      api.App       `json:"app"`
				Scale    api.Scale     `json:"scale"`
				Machines []api.Machine `json:"machines"`
			}{a, scale, machines}
			return g.print(cmd, all, func(w io.Writer) {
				fmt.Fprintf(w, "App        %s (%s), release %d\n", a.Name, a.Status, a.Release)
				addresses := strings.Join(a.Addresses, " ")
				if addresses == "" {
					addresses = "none before the first deploy of a config with services"
				}
				fmt.Fprintf(w, "Addresses  %s\n", addresses)
				fmt.Fprintf(w, "Scale      %d awake of %d machines (min %d, max %d), %d connections, %d waiting\n\n",
					scale.Awake, scale.Total, scale.Scale.Min, scale.Scale.Max, scale.Slots, scale.Queued)
				machineTable(w, machines)
			})
		},
	}
	cmd.Flags().StringVarP(&app, "app", "a", "", "the app")
	return cmd
}

func appArg(flag string, args []string) (string, error) {
	switch {
	case flag != "":
		return flag, nil
	case len(args) == 1:
		return args[0], nil
	}
	return "", fmt.Errorf("which app? name it with --app")
}

func machineTable(w io.Writer, machines []api.Machine) {
	rows := [][]string{{"MACHINE", "STATE", "FOR", "REGION", "RELEASE", "CONNS", "CHECKS", "NOTES"}}
	for _, m := range machines {
		var notes []string
		for _, n := range []struct {
			on   bool
			word string
		}{{m.Draining, "draining"}, {m.Cordoned, "cordoned"}, {m.Managed, "by scaling"}, {m.Run != "auto", "run " + m.Run}} {
			if n.on {
				notes = append(notes, n.word)
			}
		}
		if m.Reason != "" {
			notes = append(notes, m.Reason)
		}
		rows = append(rows, []string{
			m.ID, m.State, ago(m.Since), m.Region, fmt.Sprint(m.Release), fmt.Sprint(m.Slots),
			checks(m), strings.Join(notes, ", "),
		})
	}
	table(w, rows)
}

func checks(m api.Machine) string {
	if len(m.Checks) == 0 {
		return "-"
	}
	n := 0
	for _, c := range m.Checks {
		if c.Status == "passing" {
			n++
		}
	}
	return fmt.Sprintf("%d/%d", n, len(m.Checks))
}
