package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
)

func newMachine(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "machine", Short: "Look at machines and act on them", Aliases: []string{"machines", "m"}}
	cmd.AddCommand(
		newMachineList(g), newMachineStatus(g), newMachineExec(g), newMachineDestroy(g),
		newMachineUpdate(g), newMachineClone(g), newMachineSignal(g), newMachineVersions(g), newMachineLeases(g),
		newMachineStop(g),
		machineAction(g, "start", "Wake a machine", string(volant.StateStarted)),
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
		RunE: g.ask(func(c *call) error {
			names := []string{app}
			if app == "" {
				apps, err := c.Apps(c.ctx)
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
				ms, err := c.Machines(c.ctx, n)
				if errors.Is(err, volant.ErrNotFound) && app == "" {
					continue // destroyed meanwhile
				}
				if err != nil {
					return err
				}
				all = append(all, ms...)
			}
			return c.say(all, func(w io.Writer) { machineTable(w, all) })
		}),
	}
	cmd.Flags().StringVarP(&app, "app", "a", "", "only this app's")
	return cmd
}

// askMachine is a verb about one machine, whose ID is its first argument.
func (g *globals) askMachine(use, short string, args cobra.PositionalArgs, run func(c *call, app string, m api.Machine) error) *cobra.Command {
	var app string
	cmd := &cobra.Command{
		Use: use, Short: short, Args: args,
		RunE: g.ask(func(c *call) error {
			if app != "" {
				m, err := c.Machine(c.ctx, app, c.args[0])
				if err != nil {
					return err
				}
				return run(c, app, m)
			}
			of, m, err := c.FindMachine(c.ctx, c.args[0])
			if err != nil {
				return err
			}
			return run(c, of, m)
		}),
	}
	cmd.Flags().StringVarP(&app, "app", "a", "", "the machine's app (default: any)")
	return cmd
}

func newMachineStatus(g *globals) *cobra.Command {
	return g.askMachine("status ID", "Show one machine", cobra.ExactArgs(1), func(c *call, app string, m api.Machine) error {
		return c.say(m, func(w io.Writer) {
			fmt.Fprintf(w, "App      %s\n", app)
			machineTable(w, []api.Machine{m})
			if m.Exit != nil {
				fmt.Fprintf(w, "\nLast exit: %s, %s ago\n", exitText(m.Exit), ago(m.Exit.At))
			}
			for _, ck := range m.Checks {
				fmt.Fprintf(w, "\nCheck %s: %s %s\n", ck.Name, ck.Status, clean(ck.Output, ""))
			}
			if len(m.Events) > 0 {
				fmt.Fprintln(w, "\nEvents, newest first:")
			}
			for _, e := range m.Events {
				fmt.Fprintf(w, "  %s  %-9s  %-18s  by %s\n", stamp(time.UnixMilli(e.Timestamp)), e.Type, e.Status, e.Source)
			}
		})
	})
}

func machineAction(g *globals, action, short, state string) *cobra.Command {
	return g.askMachine(action+" ID", short, cobra.ExactArgs(1), func(c *call, app string, m api.Machine) error {
		if err := c.MachineAction(c.ctx, app, m.ID, action); err != nil {
			return err
		}
		if state != "" {
			if err := c.Wait(c.ctx, app, m.ID, state, time.Minute); err != nil {
				return err
			}
		}
		return c.sayMachine(app, m.ID)
	})
}

// sayMachine says what a machine is now.
func (c *call) sayMachine(app, id string) error {
	m, err := c.Machine(c.ctx, app, id)
	if err != nil {
		return err
	}
	return c.say(m, func(w io.Writer) {
		cordoned := ""
		if m.Cordoned {
			cordoned = ", and cordoned: no connection is routed to it"
		}
		fmt.Fprintf(w, "Machine %s is %s%s.\n", m.ID, m.State, cordoned)
	})
}

func newMachineDestroy(g *globals) *cobra.Command {
	var force bool
	cmd := g.askMachine("destroy ID", "Destroy a machine", cobra.ExactArgs(1), func(c *call, app string, m api.Machine) error {
		if err := c.DestroyMachine(c.ctx, app, m.ID, force); err != nil {
			return err
		}
		if err := c.Wait(c.ctx, app, m.ID, string(volant.StateDestroyed), time.Minute); err != nil {
			return err
		}
		return c.sayDone("destroyed", m.ID, "Destroyed machine "+m.ID+".")
	})
	cmd.Flags().BoolVarP(&force, "force", "f", false, "kill it if it runs, with its connections")
	return cmd
}

func newMachineExec(g *globals) *cobra.Command {
	var timeout int
	var stdin bool
	cmd := g.askMachine("exec ID -- COMMAND [ARG…]", "Run a command in an awake machine", cobra.MinimumNArgs(2), func(c *call, app string, m api.Machine) error {
		e := api.Exec{Command: c.args[1:], Timeout: timeout}
		if stdin {
			b, err := io.ReadAll(io.LimitReader(c.cmd.InOrStdin(), 1<<20))
			if err != nil {
				return err
			}
			e.Stdin = string(b)
		}
		return c.exec(app, m.ID, e)
	})
	cmd.Flags().IntVar(&timeout, "timeout", 3600, "seconds until the command is killed")
	cmd.Flags().BoolVarP(&stdin, "stdin", "i", false, "send standard input, at most 1 MiB")
	return cmd
}

func (c *call) exec(app, id string, e api.Exec) error {
	if c.json {
		var out, errs limited
		res, err := c.Exec(c.ctx, app, id, e, &out, &errs)
		if err != nil {
			return err
		}
		res.Stdout, res.Stderr, res.Truncated = string(out.b), string(errs.b), out.cut || errs.cut
		return c.say(res, nil)
	}
	res, err := c.Exec(c.ctx, app, id, e, c.cmd.OutOrStdout(), c.cmd.ErrOrStderr())
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
