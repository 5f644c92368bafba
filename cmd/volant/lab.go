package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/lab"
	"github.com/volant-edge/volant/lab/backend"
)

// labFlags say which lab a verb is of.
type labFlags struct{ name, dir string }

func (l *labFlags) where() string {
	if l.dir != "" {
		return l.dir
	}
	return lab.DefaultDir(l.name)
}

func (l *labFlags) open() (*lab.Lab, error) { return lab.Open(l.where()) }

func newLab(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use: "lab", Short: "A planet on this machine: servers in several regions, with real delays between them",
		Long: `A planet on this machine, to try things and to test: a network namespace for each server, one for the router
of each region and one for its clients, and wires between the regions that take as long as the real ones.
Real servers run in it. It needs root.`,
	}
	l := &labFlags{}
	cmd.PersistentFlags().StringVar(&l.name, "name", "default", "name of the lab")
	cmd.PersistentFlags().StringVar(&l.dir, "dir", "", "directory of the lab (default /var/lib/volant-lab/NAME)")
	cmd.AddCommand(
		newLabUp(l), newLabStatus(g, l), newLabExec(l), newLabClient(l), newLabCut(l), newLabHeal(l), newLabKill(l), newLabStart(l),
		newLabDelay(l), newLabLoss(l), newLabDown(l), newLabWire(), newLabBackend(),
	)
	return cmd
}

func newLabUp(l *labFlags) *cobra.Command {
	var c lab.Config
	var delays, roles []string
	cmd := &cobra.Command{
		Use: "up", Short: "Build the lab and start its servers", Args: cobra.NoArgs,
		Example: "  volant lab up --regions dfw,ord,ams --hosts 2\n  volant lab up --regions here,there --delay here-there=10ms --engine fake",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.Name, c.Dir, c.Delays = l.name, l.dir, map[string]time.Duration{}
			for _, d := range delays {
				wire, text, ok := strings.Cut(d, "=")
				took, err := time.ParseDuration(text)
				if !ok || err != nil {
					return volant.Invalidf("delay %q: write it as dfw-ord=10ms", d)
				}
				c.Delays[wire] = took
			}
			c.Roles = map[string][]string{}
			for _, r := range roles {
				node, list, ok := strings.Cut(r, "=")
				if !ok {
					return volant.Invalidf("roles %q: write them as dfw-1=edge,control", r)
				}
				c.Roles[node] = strings.Split(list, ",")
			}
			up, err := lab.Up(cmd.Context(), c)
			if err != nil {
				return err
			}
			first := up.Node(0).Name
			fmt.Fprintf(cmd.OutOrStdout(), "The lab %s is up: %d servers in %s.\nSpeak to one of them:  volant lab exec %s -- volant nodes\nSee it from outside:   volant lab client %s -- curl ADDRESS\n",
				up.Config().Name, len(up.Nodes()), strings.Join(up.Config().Regions, ", "), first, up.Config().Regions[0])
			return nil
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&c.Regions, "regions", nil, "codes of the regions, such as dfw,ord,ams")
	f.IntVar(&c.Hosts, "hosts", 1, "servers in each region")
	f.IntVar(&c.Control, "control", 1, "servers that keep the intent: 1, 3 or 5")
	f.StringVar(&c.Engine, "engine", "auto", "what runs machines: qemu, fake (a process answers for them), or auto")
	f.StringVar(&c.Kernel, "kernel", "", "directory of the guests' kernel (default /var/lib/volant/kernel)")
	f.StringArrayVar(&delays, "delay", nil, "delay of a wire, one way: dfw-ord=10ms (default: by the distance)")
	f.StringArrayVar(&roles, "roles", nil, "roles of one server: dfw-1=edge,control (default: edge and host)")
	f.BoolVar(&c.Bare, "bare", false, "build the network only; start no server")
	return cmd
}

func newLabStatus(g *globals, l *labFlags) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the lab's servers and wires", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			up, err := l.open()
			if err != nil {
				return err
			}
			s, err := up.Status(cmd.Context())
			if err != nil {
				return err
			}
			return g.print(cmd, s, func(w io.Writer) { labText(w, s) })
		},
	}
}

func labText(w io.Writer, s lab.Status) {
	if !s.Ready {
		fmt.Fprint(w, "The lab was not built to its end: take it down with `volant lab down`.\n\n")
	}
	rows := [][]string{{"NODE", "REGION", "STATE", "ROLES", "ENGINE", "ADDRESS", "IPV6", "API", "SERVER", "PROXY", "MESH", "PROCESSES"}}
	num := func(n int) string {
		if n == 0 {
			return "-"
		}
		return strconv.Itoa(n)
	}
	for _, n := range s.Nodes {
		rows = append(rows, []string{
			n.Name, n.Region, n.State, strings.Join(n.Roles, ","), n.Engine, n.Addr4.String(), n.Addr6.String(), dashed(n.API), num(n.ServerPID), num(n.ProxyPID), num(n.MeshPID), num(n.Processes),
		})
	}
	table(w, rows)
	if len(s.Wires) > 0 {
		fmt.Fprintln(w)
		rows = [][]string{{"WIRE", "DELAY", "ROUND TRIP", "LOSS", "STATE", "PASSED", "DROPPED"}}
		for _, v := range s.Wires {
			state := "whole"
			if v.Cut {
				state = "cut"
			}
			rows = append(rows, []string{
				v.A + " - " + v.B, v.Delay.String(), (2 * v.Delay).String(), fmt.Sprintf("%g%%", 100*v.Loss), state,
				strconv.FormatUint(v.Passed, 10), strconv.FormatUint(v.Dropped, 10),
			})
		}
		table(w, rows)
	}
	for _, c := range s.Cuts {
		fmt.Fprintf(w, "cut: %s\n", c)
	}
	if s.WireError != "" {
		fmt.Fprintf(w, "%s; start it again with `volant lab heal`\n", s.WireError)
	}
}

func dashed(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func newLabExec(l *labFlags) *cobra.Command {
	return &cobra.Command{
		Use: "exec NODE -- COMMAND…", Short: "Run a command on a server of the lab", Args: cobra.MinimumNArgs(2),
		Long: "Run a command on a server of the lab: in its network namespace, with `volant` speaking to that node.",
		RunE: func(_ *cobra.Command, args []string) error {
			up, err := l.open()
			if err != nil {
				return err
			}
			if _, err := up.Named(args[0]); err != nil {
				return err
			}
			return up.Become(args[0], args[1:])
		},
	}
}

func newLabClient(l *labFlags) *cobra.Command {
	return &cobra.Command{
		Use: "client REGION -- COMMAND…", Short: "Run a command where a region's clients are", Args: cobra.MinimumNArgs(2),
		Long: `Run a command where a region's clients are. Each address of the region's /24 and /48 is local there, so that
a program which can bind its own address (curl --interface) may be any of them.`,
		RunE: func(_ *cobra.Command, args []string) error {
			up, err := l.open()
			if err != nil {
				return err
			}
			if err := up.CheckRegion(args[0]); err != nil {
				return err
			}
			return up.Become(args[0], args[1:])
		},
	}
}

func newLabCut(l *labFlags) *cobra.Command {
	return &cobra.Command{
		Use: "cut A [B]", Short: "Keep two regions or servers from each other, in silence; or one from all", Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			up, err := l.open()
			if err != nil {
				return err
			}
			c := lab.Cut{A: args[0]}
			if len(args) == 2 {
				c.B = args[1]
			}
			if err := up.Cut(cmd.Context(), c.A, c.B); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Cut off: %s.\n", c)
			return nil
		},
	}
}

func newLabHeal(l *labFlags) *cobra.Command {
	return &cobra.Command{
		Use: "heal [A [B]]", Short: "Take a cut back, or all cuts", Args: cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			up, err := l.open()
			if err != nil {
				return err
			}
			names := append(args, "", "")
			if err := up.Heal(cmd.Context(), names[0], names[1]); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "Healed.")
			return nil
		},
	}
}

func newLabKill(l *labFlags) *cobra.Command {
	var only string
	cmd := &cobra.Command{
		Use: "kill NODE", Short: "End a server as a power cut does: in silence, with all its processes", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			up, err := l.open()
			if err != nil {
				return err
			}
			if only != "" {
				return up.KillOnly(cmd.Context(), args[0], only)
			}
			if err := up.Kill(cmd.Context(), args[0]); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is dead.\n", args[0])
			return nil
		},
	}
	cmd.Flags().StringVar(&only, "only", "", "end one process and leave the others: server, proxy, mesh or backend")
	return cmd
}

func newLabStart(l *labFlags) *cobra.Command {
	return &cobra.Command{
		Use: "start NODE", Short: "Start a server that was killed, from its disk", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			up, err := l.open()
			if err != nil {
				return err
			}
			if err := up.Start(cmd.Context(), args[0]); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s runs.\n", args[0])
			return nil
		},
	}
}

func newLabDelay(l *labFlags) *cobra.Command {
	return &cobra.Command{
		Use: "delay A B DURATION", Short: "Make the wire between two regions take so long, one way", Args: cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := time.ParseDuration(args[2])
			if err != nil {
				return volant.Invalidf("delay %q: write it as 40ms", args[2])
			}
			up, err := l.open()
			if err != nil {
				return err
			}
			return up.Delay(cmd.Context(), args[0], args[1], d)
		},
	}
}

func newLabLoss(l *labFlags) *cobra.Command {
	return &cobra.Command{
		Use: "loss A B PERCENT", Short: "Make the wire between two regions lose packets, in each direction", Args: cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			number, ok := strings.CutSuffix(args[2], "%")
			share, err := strconv.ParseFloat(number, 64)
			if !ok || err != nil {
				return volant.Invalidf("loss %q: write it as 1%%", args[2])
			}
			up, err := l.open()
			if err != nil {
				return err
			}
			return up.Loss(cmd.Context(), args[0], args[1], share/100)
		},
	}
}

func newLabDown(l *labFlags) *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "Take the lab away: servers, machines, namespaces and its directory", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			done, err := lab.Down(cmd.Context(), l.name, l.where())
			for _, line := range done {
				fmt.Fprintln(cmd.OutOrStdout(), line)
			}
			return err
		},
	}
}

// newLabWire is the process that holds a lab's wires.
func newLabWire() *cobra.Command {
	return &cobra.Command{
		Use: "wire", Short: "Hold the wires of a lab (the lab starts it)", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return lab.RunWires(cmd.Context(), cmd.Flag("dir").Value.String())
		},
	}
}

// newLabBackend is the process that answers for a node's machines of the fake engine.
func newLabBackend() *cobra.Command {
	var c backend.Config
	cmd := &cobra.Command{
		Use: "backend", Short: "Answer for machines of the fake engine (the lab starts it)", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return backend.Run(cmd.Context(), c) },
	}
	cmd.Flags().StringVar(&c.Region, "region", "", "the node's region")
	cmd.Flags().StringVar(&c.Node, "node", "", "the node's name")
	cmd.Flags().IntSliceVar(&c.Ports, "ports", nil, "ports to listen on")
	return cmd
}
