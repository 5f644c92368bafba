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
