package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/volant-edge/volant/api"
)

func newApps(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "apps", Short: "Make, list and destroy apps"}
	var org string
	create := &cobra.Command{
		Use: "create NAME", Short: "Make an app", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			created, err := c.CreateApp(cmd.Context(), args[0], org)
			if err != nil {
				return err
			}
			return g.print(cmd, created, func(w io.Writer) {
				fmt.Fprintf(w, "Created app %s.\nNext: volant deploy --app %s --image oci-archive:FILE\n", args[0], args[0])
			})
		},
	}
	create.Flags().StringVar(&org, "org", "personal", "organization that owns it")
	list := &cobra.Command{
		Use: "list", Short: "List apps", Args: cobra.NoArgs, Aliases: []string{"ls"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			apps, err := c.Apps(cmd.Context())
			if err != nil {
				return err
			}
			if apps == nil {
				apps = []api.App{}
			}
			return g.print(cmd, apps, func(w io.Writer) {
				rows := [][]string{{"NAME", "STATUS", "RELEASE", "MACHINES", "ADDRESSES"}}
				for _, a := range apps {
					rows = append(rows, []string{a.Name, a.Status, fmt.Sprint(a.Release), fmt.Sprint(a.MachineCount), strings.Join(a.Addresses, " ")})
				}
				table(w, rows)
			})
		},
	}
	var yes bool
	destroy := &cobra.Command{
		Use: "destroy NAME", Short: "Destroy an app and its machines", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			if err := c.DestroyApp(cmd.Context(), args[0], yes); err != nil {
				return err
			}
			return g.print(cmd, map[string]string{"destroyed": args[0]}, func(w io.Writer) {
				fmt.Fprintf(w, "Destroyed app %s.\n", args[0])
			})
		},
	}
	destroy.Flags().BoolVarP(&yes, "force", "f", false, "stop its running machines first")
	destroy.Flags().BoolVarP(&yes, "yes", "y", false, "the same as --force")
	cmd.AddCommand(create, list, destroy)
	return cmd
}
