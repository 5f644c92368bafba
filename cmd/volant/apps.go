package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/volant-edge/volant/api"
)

func newApps(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "apps", Short: "Make, list and destroy apps", Aliases: []string{"app"}}
	cmd.AddCommand(newAppsCreate(g), newAppsList(g), newAppsShow(g), newAppsDestroy(g))
	return cmd
}

func newAppsCreate(g *globals) *cobra.Command {
	var org string
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Make an app", Args: cobra.ExactArgs(1),
		RunE: g.ask(func(c *call) error {
			created, err := c.CreateApp(c.ctx, c.args[0], org)
			if err != nil {
				return err
			}
			return c.say(created, func(w io.Writer) {
				fmt.Fprintf(w, "Created app %s.\nNext: volant deploy --app %s --image IMAGE\n", c.args[0], c.args[0])
			})
		}),
	}
	cmd.Flags().StringVarP(&org, "org", "o", "personal", "organization that owns it")
	return cmd
}

func newAppsList(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List apps", Args: cobra.NoArgs, Aliases: []string{"ls"},
		RunE: g.ask(func(c *call) error {
			apps, err := c.Apps(c.ctx)
			if err != nil {
				return err
			}
			return sayRows(c, apps, []string{"NAME", "ORG", "STATUS", "RELEASE", "MACHINES", "ADDRESSES"}, func(a api.App) []string {
				return []string{
					a.Name, a.Organization.Slug, a.Status, fmt.Sprint(a.Release), fmt.Sprint(a.MachineCount), strings.Join(a.Addresses, " "),
				}
			})
		}),
	}
}

func newAppsShow(g *globals) *cobra.Command {
	return g.askApp("show [APP]", "Show an app", func(c *call, app string) error {
		a, err := c.App(c.ctx, app)
		if err != nil {
			return err
		}
		return c.say(a, func(w io.Writer) {
			table(w, [][]string{
				{"Name", a.Name},
				{"ID", a.ID},
				{"Organization", a.Organization.Slug},
				{"Status", a.Status},
				{"Release", fmt.Sprint(a.Release)},
				{"Machines", fmt.Sprint(a.MachineCount)},
				{"Addresses", strings.Join(a.Addresses, " ")},
				{"Created", stamp(a.CreatedAt)},
			})
		})
	})
}

func newAppsDestroy(g *globals) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "destroy NAME", Short: "Destroy an app and its machines", Args: cobra.ExactArgs(1),
		RunE: g.ask(func(c *call) error {
			if err := c.DestroyApp(c.ctx, c.args[0], yes); err != nil {
				return err
			}
			return c.sayDone("destroyed", c.args[0], "Destroyed app "+c.args[0]+".")
		}),
	}
	cmd.Flags().BoolVarP(&yes, "force", "f", false, "stop its running machines first")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "the same as --force")
	return cmd
}
