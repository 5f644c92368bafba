package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/volant-edge/volant/api"
)

func newReleases(g *globals) *cobra.Command {
	return g.askApp("releases [APP]", "List an app's releases, newest first", func(c *call, app string) error {
		rs, err := c.Releases(c.ctx, app)
		if err != nil {
			return err
		}
		return sayRows(c, rs, []string{"RELEASE", "STATUS", "AGE", "BY", "IMAGE", "NOTE"}, func(r api.Release) []string {
			return []string{fmt.Sprint(r.Version), r.Status, ago(r.CreatedAt), r.Actor, short(r.Image), r.Reason}
		})
	})
}

// short is a digest that people can tell from others.
func short(digest string) string {
	const enough = len("sha256:") + 12
	return digest[:min(len(digest), enough)]
}

func newNodes(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "nodes", Short: "Look at servers", Aliases: []string{"node"}}
	cmd.AddCommand(&cobra.Command{
		Use: "list", Short: "List servers", Args: cobra.NoArgs, Aliases: []string{"ls"},
		RunE: g.ask(func(c *call) error {
			ns, err := c.Nodes(c.ctx)
			if err != nil {
				return err
			}
			return sayRows(c, ns, []string{"NODE", "NAME", "REGION", "ENGINE", "MACHINES", "AWAKE", "MEMORY FREE", "PROXY"}, func(n api.Node) []string {
				return []string{
					n.ID, n.Name, n.Region, n.Engine, fmt.Sprint(n.Machines), fmt.Sprint(n.Awake),
					fmt.Sprintf("%d of %d MB", n.MemoryFree, n.Memory), n.Proxy,
				}
			})
		}),
	})
	return cmd
}
