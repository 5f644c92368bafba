package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
)

func newNodes(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "nodes", Short: "Look at servers, and take them out of service", Aliases: []string{"node"}}
	cmd.AddCommand(
		&cobra.Command{
			Use: "list", Short: "List servers", Args: cobra.NoArgs, Aliases: []string{"ls"},
			RunE: g.ask(func(c *call) error {
				ns, err := c.Nodes(c.ctx)
				if err != nil {
					return err
				}
				return sayRows(c, ns, []string{"NODE", "NAME", "REGION", "ROLES", "STATE", "ENGINE", "MACHINES", "AWAKE", "MEMORY FREE", "NOTES"}, nodeRow)
			}),
		},
		&cobra.Command{
			Use: "show NODE", Short: "Show a server, named by its ID or name", Args: cobra.ExactArgs(1), Aliases: []string{"get"},
			RunE: g.ask(func(c *call) error {
				n, err := c.Node(c.ctx, c.args[0])
				if err != nil {
					return err
				}
				return c.say(n, func(w io.Writer) { nodeText(w, n) })
			}),
		},
		changeNode(g, "drain", "Have a server's machines go elsewhere, and no new ones come", "Node %s drains. Its machines go elsewhere as their connections end; see `volant nodes show %s`.\n"),
		changeNode(g, "undrain", "Let machines come to a server again", "Node %s takes machines again; see `volant nodes show %s`.\n"),
		changeNode(g, "promote", "Make a server a control node: a member of the intent's store", "Node %s is to be a control node. It becomes one when it has caught up; see `volant nodes show %s`.\n"),
		changeNode(g, "demote", "Make a server a control node no longer", "Node %s is to be a control node no longer; see `volant nodes show %s`.\n"),
		changeNode(g, "rotate-key", "Give a server a new mesh key; no connection is dropped", "Node %s makes a new mesh key, and uses it once all other nodes know it; see `volant nodes show %s`.\n"),
		newNodesRemove(g),
	)
	return cmd
}

func nodeRow(n api.Node) []string {
	notes := []string{}
	if n.Self {
		notes = append(notes, "this one")
	}
	if n.Draining {
		notes = append(notes, "draining")
	}
	if n.Control != "" && n.Control != "member" {
		notes = append(notes, "control: "+n.Control)
	}
	if n.Proxy != "" && n.Proxy != "running" {
		notes = append(notes, "proxy: "+n.Proxy)
	}
	memory := "-"
	if n.Memory > 0 {
		memory = fmt.Sprintf("%d of %d MB", n.MemoryFree, n.Memory)
	} else if n.MemoryFree > 0 {
		memory = fmt.Sprintf("%d MB", n.MemoryFree)
	}
	engine := n.Engine
	if engine == "" {
		engine = "-"
	}
	return []string{
		n.ID, n.Name, n.Region, strings.Join(n.Roles, ","), n.State, engine, fmt.Sprint(n.Machines), fmt.Sprint(n.Awake),
		memory, strings.Join(notes, ", "),
	}
}

func nodeText(w io.Writer, n api.Node) {
	draining := ""
	if n.Draining {
		draining = ", draining"
	}
	fmt.Fprintf(w, "Node       %s (%s), region %s\n", n.Name, n.ID, n.Region)
	fmt.Fprintf(w, "State      %s%s\n", n.State, draining)
	fmt.Fprintf(w, "Roles      %s\n", strings.Join(n.Roles, ", "))
	if n.Control != "" {
		fmt.Fprintf(w, "Control    %s\n", n.Control)
	}
	if n.At != "" {
		fmt.Fprintf(w, "Mesh       %s at %s", n.Mesh, n.At)
		if n.RTT > 0 {
			fmt.Fprintf(w, ", %s away", time.Duration(n.RTT).Round(10*time.Microsecond))
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "Machines   %d, %d awake\n", n.Machines, n.Awake)
	if n.Memory > 0 {
		fmt.Fprintf(w, "Memory     %d of %d MB free\n", n.MemoryFree, n.Memory)
	}
	if n.Engine != "" {
		fmt.Fprintf(w, "Engine     %s (%s)\n", n.Engine, n.EngineWhy)
	}
	if n.Version != "" {
		fmt.Fprintf(w, "Version    %s, up for %s\n", n.Version, n.Uptime.Round(time.Second))
	}
	if n.Proxy != "" {
		fmt.Fprintf(w, "Proxy      %s\n", n.Proxy)
	}
}

// changeNode is a verb that changes a server; text takes its name and ID.
func changeNode(g *globals, verb, short, text string) *cobra.Command {
	return &cobra.Command{
		Use: verb + " NODE", Short: short, Args: cobra.ExactArgs(1),
		RunE: g.ask(func(c *call) error {
			n, err := c.ChangeNode(c.ctx, c.args[0], verb)
			if err != nil {
				return err
			}
			return c.say(n, func(w io.Writer) {
				fmt.Fprintf(w, text, n.Name, n.ID)
				if verb == "promote" || verb == "demote" {
					evenControls(c)
				}
			})
		}),
	}
}

// evenControls warns of a number of control nodes that costs more than it gives.
func evenControls(c *call) {
	ns, err := c.Nodes(c.ctx)
	if err != nil {
		return // the change itself was made
	}
	k := 0
	for _, n := range ns {
		for _, r := range n.Roles {
			if r == "control" {
				k++
			}
		}
	}
	if k%2 == 0 && k > 0 {
		fmt.Fprintf(c.cmd.ErrOrStderr(), "warning: %d control nodes survive the loss of no more of them than %d do: use 1, 3 or 5\n", k, k-1)
	}
}

func newNodesRemove(g *globals) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "remove NODE", Short: "Throw a server out for good: its key is refused everywhere", Args: cobra.ExactArgs(1), Aliases: []string{"rm"},
		Long: `Throw a server out for good: every other server refuses its key, and its machines are on record no longer.
It can come back only with an empty data directory and a new join token, as another node.

A server that is alive and has machines is refused unless --force is given: drain it first.`,
		RunE: g.ask(func(c *call) error {
			n, err := c.RemoveNode(c.ctx, c.args[0], force)
			if err != nil {
				return err
			}
			return c.say(n, func(w io.Writer) {
				fmt.Fprintf(w, "Removed node %s (%s)", n.Name, n.ID)
				if n.Machines > 0 {
					fmt.Fprintf(w, " with %d machines of %s", n.Machines, strings.Join(n.Apps, ", "))
				}
				fmt.Fprintln(w, ".\nIt has known the cluster's secrets. If it fell into wrong hands, set them anew.")
			})
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "though it is alive and has machines, which are lost")
	return cmd
}

func newRegions(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "regions", Short: "Say where regions are", Aliases: []string{"region"}}
	var in api.SetRegion
	set := &cobra.Command{
		Use: "set CODE", Short: "Give a region its name and place", Args: cobra.ExactArgs(1),
		Example: "  volant regions set dus --name \"Düsseldorf, Germany\" --lat 51.28 --long 6.77",
		RunE: g.ask(func(c *call) error {
			if f := c.cmd.Flags(); !f.Changed("lat") || !f.Changed("long") {
				return volant.Invalidf("where is %s?", c.args[0]).WithRemedy("say so with --lat and --long")
			}
			r, err := c.SetRegion(c.ctx, c.args[0], in)
			if err != nil {
				return err
			}
			return c.say(r, func(w io.Writer) {
				fmt.Fprintf(w, "Region %s is %s at %v, %v.\n", r.Code, r.Name, r.Latitude, r.Longitude)
			})
		}),
	}
	f := set.Flags()
	f.StringVar(&in.Name, "name", "", "its name for people")
	f.Float64Var(&in.Latitude, "lat", 0, "latitude in degrees, north positive")
	f.Float64Var(&in.Longitude, "long", 0, "longitude in degrees, east positive")
	cmd.AddCommand(
		&cobra.Command{
			Use: "list", Short: "List the regions that have a server, and those that were described", Args: cobra.NoArgs, Aliases: []string{"ls"},
			RunE: g.ask(func(c *call) error {
				rs, err := c.Regions(c.ctx)
				if err != nil {
					return err
				}
				return sayRows(c, rs, []string{"CODE", "NAME", "LATITUDE", "LONGITUDE", "ROOM"}, func(r api.Region) []string {
					return []string{r.Code, r.Name, fmt.Sprint(r.Latitude), fmt.Sprint(r.Longitude), fmt.Sprintf("%d machines", r.Capacity)}
				})
			}),
		},
		set,
		&cobra.Command{
			Use: "remove CODE", Short: "Forget how a region was described", Args: cobra.ExactArgs(1), Aliases: []string{"rm"},
			RunE: g.ask(func(c *call) error {
				if err := c.RemoveRegion(c.ctx, c.args[0]); err != nil {
					return err
				}
				return c.sayDone("removed", c.args[0], "Region "+c.args[0]+" is described no longer.")
			}),
		},
	)
	return cmd
}
