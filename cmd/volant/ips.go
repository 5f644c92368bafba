package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/volant-edge/volant/api"
)

func newIPs(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "ips", Short: "Give and take an app's addresses", Aliases: []string{"ip"}}
	list := g.askApp("list [APP]", "List an app's addresses", func(c *call, app string) error {
		all, err := c.Addresses(c.ctx, app)
		if err != nil {
			return err
		}
		return sayRows(c, all, []string{"ADDRESS", "SHARED", "REGION", "AGE"}, func(a api.IPAssignment) []string {
			shared := "no"
			if a.Shared {
				shared = "yes"
			}
			return []string{a.IP, shared, a.Region, ago(a.CreatedAt)}
		})
	})
	list.Aliases = []string{"ls"}
	var shared bool
	v4 := g.askApp("allocate-v4 [APP]", "Give an app an IPv4 address", func(c *call, app string) error {
		kind := "v4"
		if shared {
			kind = "shared_v4"
		}
		return allocate(c, app, kind)
	})
	v4.Flags().BoolVar(&shared, "shared", false, "one that other apps have too: enough for ports with the handlers tls or http")
	v6 := g.askApp("allocate-v6 [APP]", "Give an app an IPv6 address", func(c *call, app string) error { return allocate(c, app, "v6") })
	release := g.askApp("release ADDRESS...", "Take addresses from an app", func(c *call, app string) error {
		for _, ip := range c.args {
			if err := c.ReleaseAddress(c.ctx, app, ip); err != nil {
				return err
			}
		}
		return c.say(map[string][]string{"released": c.args}, func(w io.Writer) {
			for _, ip := range c.args {
				fmt.Fprintf(w, "App %s no longer has %s.\n", app, ip)
			}
		})
	})
	release.Args = cobra.MinimumNArgs(1)
	cmd.AddCommand(list, v4, v6, release)
	return cmd
}

func allocate(c *call, app, kind string) error {
	a, err := c.AssignAddress(c.ctx, app, api.AssignIP{Type: kind})
	if err != nil {
		return err
	}
	return c.say(a, func(w io.Writer) { fmt.Fprintf(w, "App %s has %s.\n", app, a.IP) })
}
