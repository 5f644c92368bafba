package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/volant-edge/volant/api"
)

func newReleases(g *globals) *cobra.Command {
	var app string
	cmd := &cobra.Command{
		Use: "releases [APP]", Short: "List an app's releases, newest first", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := appArg(app, args)
			if err != nil {
				return err
			}
			c, err := g.client()
			if err != nil {
				return err
			}
			rs, err := c.Releases(cmd.Context(), name)
			if err != nil {
				return err
			}
			if rs == nil {
				rs = []api.Release{}
			}
			return g.print(cmd, rs, func(w io.Writer) {
				rows := [][]string{{"RELEASE", "STATUS", "AGE", "BY", "IMAGE", "NOTE"}}
				for _, r := range rs {
					image := r.Image
					if len(image) > 19 {
						image = image[:19]
					}
					rows = append(rows, []string{fmt.Sprint(r.Version), r.Status, ago(r.CreatedAt), r.Actor, image, r.Reason})
				}
				table(w, rows)
			})
		},
	}
	cmd.Flags().StringVarP(&app, "app", "a", "", "the app")
	return cmd
}

func newNodes(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "nodes", Short: "Look at servers"}
	cmd.AddCommand(&cobra.Command{
		Use: "list", Short: "List servers", Args: cobra.NoArgs, Aliases: []string{"ls"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			ns, err := c.Nodes(cmd.Context())
			if err != nil {
				return err
			}
			return g.print(cmd, ns, func(w io.Writer) {
				rows := [][]string{{"NODE", "NAME", "REGION", "ENGINE", "MACHINES", "AWAKE", "MEMORY FREE", "PROXY"}}
				for _, n := range ns {
					rows = append(rows, []string{
						n.ID, n.Name, n.Region, n.Engine, fmt.Sprint(n.Machines), fmt.Sprint(n.Awake),
						fmt.Sprintf("%d of %d MB", n.MemoryFree, n.Memory), n.Proxy,
					})
				}
				table(w, rows)
			})
		},
	})
	return cmd
}
