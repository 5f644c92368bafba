package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/client"
)

func newMachine(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "machine", Short: "Look at machines and act on them", Aliases: []string{"machines", "m"}}
	cmd.AddCommand(
		newMachineList(g), newMachineStatus(g), newMachineExec(g), newMachineDestroy(g),
		machineAction(g, "start", "Wake a machine", string(volant.StateStarted)),
		machineAction(g, "stop", "Stop a machine; the next connection wakes it where its app wakes", string(volant.StateStopped)),
		machineAction(g, "suspend", "Suspend a machine to disk", string(volant.StateSuspended)),
		machineAction(g, "restart", "Restart a machine's process in place", string(volant.StateStarted)),
		machineAction(g, "cordon", "Take a machine out of routing", ""),
		machineAction(g, "uncordon", "Put a machine back into routing", ""),
	)
	return cmd
}

func newMachineList(g *globals) *cobra.Command {
	var app string
	cmd := &cobra.Command{
		Use: "list", Short: "List machines", Aliases: []string{"ls"}, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			names := []string{app}
			if app == "" {
				apps, err := c.Apps(cmd.Context())
				if err != nil {
					return err
				}
				names = names[:0]
				for _, a := range apps {
					names = append(names, a.Name)
				}
			}
			all := []api.Machine{}
			for _, n := range names {
				ms, err := c.Machines(cmd.Context(), n)
				if errors.Is(err, volant.ErrNotFound) && app == "" {
					continue // destroyed meanwhile
				}
				if err != nil {
					return err
				}
				all = append(all, ms...)
			}
			return g.print(cmd, all, func(w io.Writer) { machineTable(w, all) })
		},
	}
	cmd.Flags().StringVarP(&app, "app", "a", "", "only this app's")
	return cmd
}

func newMachineStatus(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "status ID", Short: "Show one machine", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			app, m, err := c.FindMachine(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return g.print(cmd, m, func(w io.Writer) {
				fmt.Fprintf(w, "App      %s\n", app)
				machineTable(w, []api.Machine{m})
				if m.Exit != nil {
					fmt.Fprintf(w, "\nLast exit: code %d, signal %d, out of memory %v, %s ago\n", m.Exit.Code, m.Exit.Signal, m.Exit.OOM, ago(m.Exit.At))
				}
				for _, ck := range m.Checks {
					fmt.Fprintf(w, "\nCheck %s: %s %s\n", ck.Name, ck.Status, clean(ck.Output, ""))
				}
				if len(m.Events) > 0 {
					fmt.Fprintln(w, "\nEvents, newest first:")
				}
				for _, e := range m.Events {
					fmt.Fprintf(w, "  %s  %-9s  %-18s  by %s\n", time.UnixMilli(e.Timestamp).UTC().Format("2006-01-02T15:04:05.000Z"), e.Type, e.Status, e.Source)
				}
			})
		},
	}
}

func machineAction(g *globals, action, short, state string) *cobra.Command {
	return &cobra.Command{
		Use: action + " ID", Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			app, _, err := c.FindMachine(ctx, args[0])
			if err != nil {
				return err
			}
			if err := c.MachineAction(ctx, app, args[0], action); err != nil {
				return err
			}
			if state != "" {
				if err := c.Wait(ctx, app, args[0], state, time.Minute); err != nil {
					return err
				}
			}
			return showAfter(cmd, g, c, app, args[0])
		},
	}
}

func showAfter(cmd *cobra.Command, g *globals, c *client.Client, app, id string) error {
	m, err := c.Machine(cmd.Context(), app, id)
	if err != nil {
		return err
	}
	return g.print(cmd, m, func(w io.Writer) {
		cordoned := ""
		if m.Cordoned {
			cordoned = ", and cordoned: no connection is routed to it"
		}
		fmt.Fprintf(w, "Machine %s is %s%s.\n", m.ID, m.State, cordoned)
	})
}

func newMachineDestroy(g *globals) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "destroy ID", Short: "Destroy a machine", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			app, _, err := c.FindMachine(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if err := c.DestroyMachine(cmd.Context(), app, args[0], force); err != nil {
				return err
			}
			if err := c.Wait(cmd.Context(), app, args[0], string(volant.StateDestroyed), time.Minute); err != nil {
				return err
			}
			return g.print(cmd, map[string]string{"destroyed": args[0]}, func(w io.Writer) {
				fmt.Fprintf(w, "Destroyed machine %s.\n", args[0])
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "kill it if it runs, with its connections")
	return cmd
}

func newMachineExec(g *globals) *cobra.Command {
	var timeout int
	var stdin bool
	cmd := &cobra.Command{
		Use: "exec ID -- COMMAND [ARG…]", Short: "Run a command in an awake machine", Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			app, _, err := c.FindMachine(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			e := api.Exec{Command: args[1:], Timeout: timeout}
			if stdin {
				b, err := io.ReadAll(io.LimitReader(os.Stdin, 1<<20))
				if err != nil {
					return err
				}
				e.Stdin = string(b)
			}
			return runExec(cmd, g, c, app, args[0], e)
		},
	}
	cmd.Flags().IntVar(&timeout, "timeout", 3600, "seconds until the command is killed")
	cmd.Flags().BoolVarP(&stdin, "stdin", "i", false, "send standard input, at most 1 MiB")
	return cmd
}

func runExec(cmd *cobra.Command, g *globals, c *client.Client, app, id string, e api.Exec) error {
	if g.json {
		var out, errs limited
		res, err := c.Exec(cmd.Context(), app, id, e, &out, &errs)
		if err != nil {
			return err
		}
		res.Stdout, res.Stderr, res.Truncated = string(out.b), string(errs.b), out.cut || errs.cut
		return g.print(cmd, res, nil)
	}
	res, err := c.Exec(cmd.Context(), app, id, e, cmd.OutOrStdout(), cmd.ErrOrStderr())
	switch {
	case err != nil:
		return err
	case res.ExitSignal != 0:
		return exitCode(128 + res.ExitSignal)
	case res.ExitCode != 0:
		return exitCode(res.ExitCode)
	}
	return nil
}

// limited keeps the first MiB of what is written.
type limited struct {
	b   []byte
	cut bool
}

func (l *limited) Write(p []byte) (int, error) {
	room := 1<<20 - len(l.b)
	if room < len(p) {
		l.cut = true
	}
	l.b = append(l.b, p[:min(room, len(p))]...)
	return len(p), nil
}
