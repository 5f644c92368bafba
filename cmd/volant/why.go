package main

import (
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"

	"github.com/spf13/cobra"

	"github.com/volant-edge/volant/why"
)

func newWhy(g *globals) *cobra.Command {
	var kinds []string
	var limit int
	cmd := &cobra.Command{
		Use: "why APP|MACHINE|CONNECTION-ID", Short: "Show the reasons of recent decisions, newest last", Args: cobra.ExactArgs(1),
		Example: "  volant why web\n  volant why web --kind refusal --kind wake",
		RunE: g.ask(func(c *call) error {
			var ks []why.Kind
			for _, k := range kinds {
				ks = append(ks, why.Kind(k))
			}
			recs, err := c.Why(c.ctx, c.args[0], ks, limit)
			if err != nil {
				return err
			}
			if recs == nil {
				recs = []why.Record{}
			}
			return c.say(recs, func(w io.Writer) { whyText(w, recs) })
		}),
	}
	cmd.Flags().StringSliceVar(&kinds, "kind", nil, "only these: connection, refusal, wake, sleep, scale, placement, deploy, machine, change")
	cmd.Flags().IntVarP(&limit, "limit", "n", 50, "at most that many, 1 to 1000")
	return cmd
}

func whyText(w io.Writer, recs []why.Record) {
	for _, r := range slices.Backward(recs) {
		fmt.Fprintf(w, "%s %-10s %s", stamp(r.Time), r.Kind, clean(r.Text, ""))
		var extra []string
		if r.Machine != "" && !strings.Contains(r.Text, string(r.Machine)) {
			extra = append(extra, "machine="+string(r.Machine))
		}
		if r.Request != "" {
			extra = append(extra, "id="+r.Request)
		}
		keys := make([]string, 0, len(r.Attrs))
		for k := range r.Attrs {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		for _, k := range keys {
			extra = append(extra, k+"="+clean(r.Attrs[k], ""))
		}
		fmt.Fprintf(w, " [%s]\n", strings.Join(append([]string{"rule=" + r.Rule}, extra...), " "))
	}
	if len(recs) == 0 {
		fmt.Fprintln(w, "No decisions on record yet.")
	}
}
