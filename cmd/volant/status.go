package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
)

func newStatus(g *globals) *cobra.Command {
	return g.askApp("status [APP]", "Show an app, its addresses and machines", func(c *call, app string) error {
		var all struct {
			App      api.App       `json:"app"`
			Scale    api.Scale     `json:"scale"`
			Machines []api.Machine `json:"machines"`
		}
		var err error
		if all.App, err = c.App(c.ctx, app); err != nil {
			return err
		}
		if all.Scale, err = c.Scale(c.ctx, app); err != nil {
			return err
		}
		if all.Machines, err = c.Machines(c.ctx, app); err != nil {
			return err
		}
		return c.say(all, func(w io.Writer) {
			a, s := all.App, all.Scale
			fmt.Fprintf(w, "App        %s (%s), release %d\n", a.Name, a.Status, a.Release)
			addresses := strings.Join(a.Addresses, " ")
			if addresses == "" {
				addresses = "none before the first deploy of a config with services"
			}
			fmt.Fprintf(w, "Addresses  %s\n", addresses)
			fmt.Fprintf(w, "Scale      %d awake of %d machines (min %d, max %d), %d connections, %d waiting\n\n",
				s.Awake, s.Total, s.Scale.Min, s.Scale.Max, s.Slots, s.Queued)
			machineTable(w, all.Machines)
		})
	})
}

// machineTable lists machines. Their process groups have a column unless all are of the one that has no name.
func machineTable(w io.Writer, machines []api.Machine) {
	groups := slices.ContainsFunc(machines, func(m api.Machine) bool { return m.Config.Group() != volant.GroupApp })
	rows := [][]string{{"MACHINE", "GROUP", "STATE", "FOR", "REGION", "RELEASE", "CONNS", "CHECKS", "NOTES"}}
	for _, m := range machines {
		rows = append(rows, []string{
			m.ID, m.Config.Group(), m.State, ago(m.Since), m.Region, fmt.Sprint(m.Release), fmt.Sprint(m.Slots), checks(m), notes(m),
		})
	}
	if !groups {
		for i := range rows {
			rows[i] = slices.Delete(rows[i], 1, 2)
		}
	}
	table(w, rows)
}

func notes(m api.Machine) string {
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
	return strings.Join(notes, ", ")
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
