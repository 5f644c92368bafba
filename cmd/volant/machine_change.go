package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"time"

	"github.com/spf13/cobra"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/image"
)

// machineChange is what `volant machine update` changes.
type machineChange struct {
	env, metadata  []string
	cpus, memory   int
	cpuKind        string
	restart        string
	image, command string
}

func newMachineUpdate(g *globals) *cobra.Command {
	var ch machineChange
	cmd := g.askMachine("update ID", "Change a machine's config; a running one is replaced in place", cobra.ExactArgs(1), func(c *call, app string, m api.Machine) error {
		patch, err := ch.patch()
		if err != nil {
			return err
		}
		if ch.image != "" {
			d := &deployment{call: c, out: c.cmd.ErrOrStderr(), app: app}
			digest, err := d.image(c.ctx, ch.image)
			if err != nil {
				return err
			}
			patch["image"] = string(digest)
		}
		if len(patch) == 0 {
			return volant.Invalidf("nothing to change").WithRemedy("name a setting, such as --env MODE=test; see `volant machine update --help`")
		}
		before := m.InstanceID
		m, err = c.PatchMachine(c.ctx, app, m.ID, m.InstanceID, patch)
		if err != nil {
			return err
		}
		return c.say(m, func(w io.Writer) {
			if m.InstanceID == before {
				fmt.Fprintf(w, "Machine %s is as it was.\n", m.ID)
				return
			}
			fmt.Fprintf(w, "Machine %s has version %s of its config, and is %s.\n", m.ID, m.InstanceID, m.State)
		})
	})
	f := cmd.Flags()
	f.StringVarP(&ch.image, "image", "i", "", imageKinds)
	f.StringArrayVarP(&ch.env, "env", "e", nil, "NAME=VALUE; NAME= alone removes it; may be given several times")
	f.StringArrayVarP(&ch.metadata, "metadata", "m", nil, "NAME=VALUE; NAME= alone removes it; may be given several times")
	f.IntVar(&ch.cpus, "vm-cpus", 0, "number of vCPUs")
	f.IntVar(&ch.memory, "vm-memory", 0, "megabytes of memory")
	f.StringVar(&ch.cpuKind, "vm-cpu-kind", "", "shared or performance")
	f.StringVar(&ch.restart, "restart", "", "what follows the end of its process: always, on-failure or no")
	f.StringVar(&ch.command, "command", "", "the command in place of the image's, as one text")
	return cmd
}

// patch is the JSON merge patch of a config.
func (ch *machineChange) patch() (map[string]any, error) {
	patch := map[string]any{}
	for key, list := range map[string][]string{"env": ch.env, "metadata": ch.metadata} {
		values := map[string]any{}
		for _, kv := range list {
			name, value, ok := strings.Cut(kv, "=")
			if !ok || name == "" {
				return nil, volant.Invalidf("--%s %q names no value", key, kv).WithRemedy("write --%s NAME=VALUE", key)
			}
			values[name] = value
			if value == "" {
				values[name] = nil
			}
		}
		if len(values) > 0 {
			patch[key] = values
		}
	}
	guest := map[string]any{}
	if ch.cpus != 0 {
		guest["cpus"] = ch.cpus
	}
	if ch.memory != 0 {
		guest["memory_mb"] = ch.memory
	}
	if ch.cpuKind != "" {
		guest["cpu_kind"] = ch.cpuKind
	}
	if len(guest) > 0 {
		patch["guest"] = guest
	}
	if ch.restart != "" {
		patch["restart"] = map[string]any{"policy": ch.restart}
	}
	if ch.command != "" {
		patch["init"] = map[string]any{"cmd": strings.Fields(ch.command)}
	}
	return patch, nil
}

func newMachineClone(g *globals) *cobra.Command {
	var region, name string
	cmd := g.askMachine("clone ID", "Make another machine with the config of one", cobra.ExactArgs(1), func(c *call, app string, m api.Machine) error {
		cfg := m.Config
		if image.IsFile(cfg.Image) {
			cfg.Image = m.ImageRef.Digest // the server has it already, and does not have the file
		}
		cfg.Metadata = maps.Clone(cfg.Metadata)
		delete(cfg.Metadata, volant.MetadataManaged) // scaling shall not destroy what was made by hand
		if region == "" {
			region = m.Region
		}
		made, err := c.CreateMachine(c.ctx, app, api.CreateMachine{Name: name, Region: region, Config: cfg})
		if err != nil {
			return err
		}
		if err := c.Wait(c.ctx, app, made.ID, string(volant.StateStarted), time.Minute); err != nil {
			return err
		}
		return c.sayMachine(app, made.ID)
	})
	cmd.Flags().StringVarP(&region, "region", "r", "", "region of the new machine (default: that of the other)")
	cmd.Flags().StringVar(&name, "name", "", "name of the new machine")
	return cmd
}

func newMachineStop(g *globals) *cobra.Command {
	var signal string
	var timeout time.Duration
	cmd := g.askMachine("stop ID", "Stop a machine; the next connection wakes it where its app wakes", cobra.ExactArgs(1), func(c *call, app string, m api.Machine) error {
		err := c.StopMachine(c.ctx, app, m.ID, api.StopMachine{Signal: signal, Timeout: api.Timeout(timeout)})
		if err != nil {
			return err
		}
		if err := c.Wait(c.ctx, app, m.ID, string(volant.StateStopped), time.Minute); err != nil {
			return err
		}
		return c.sayMachine(app, m.ID)
	})
	cmd.Flags().StringVarP(&signal, "signal", "s", "", "signal that asks its process to end (default: the config's)")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "how long the process may take until it is killed (default: the config's)")
	return cmd
}

func newMachineSignal(g *globals) *cobra.Command {
	var signal string
	cmd := g.askMachine("kill ID", "Send a signal to a machine's process", cobra.ExactArgs(1), func(c *call, app string, m api.Machine) error {
		if err := c.SignalMachine(c.ctx, app, m.ID, signal); err != nil {
			return err
		}
		return c.sayDone("signaled", m.ID, fmt.Sprintf("Sent %s to machine %s.", signal, m.ID))
	})
	cmd.Aliases = []string{"signal"}
	cmd.Flags().StringVarP(&signal, "signal", "s", "SIGKILL", "the signal")
	return cmd
}

func newMachineVersions(g *globals) *cobra.Command {
	return g.askMachine("versions ID", "List the configs a machine has and had, newest first", cobra.ExactArgs(1), func(c *call, app string, m api.Machine) error {
		vs, err := c.MachineVersions(c.ctx, app, m.ID)
		if err != nil {
			return err
		}
		return sayRows(c, vs, []string{"VERSION", "IMAGE", "CPUS", "MEMORY", "ENV"}, func(v api.MachineVersion) []string {
			g := v.Config.Guest.WithDefaults()
			return []string{v.Version, v.Config.Image, fmt.Sprintf("%d %s", g.CPUs, g.CPUKind), fmt.Sprintf("%d MB", g.MemoryMB), fmt.Sprint(len(v.Config.Env))}
		})
	})
}

func newMachineLeases(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "leases", Short: "Look at leases, by which one client holds off others' changes", Aliases: []string{"lease"}}
	cmd.AddCommand(g.askMachine("view ID", "Show who holds a machine's lease", cobra.ExactArgs(1), func(c *call, app string, m api.Machine) error {
		l, err := c.MachineLease(c.ctx, app, m.ID)
		if errors.Is(err, volant.ErrNotFound) {
			return c.say(struct{}{}, func(w io.Writer) { fmt.Fprintf(w, "Nobody holds the lease of machine %s.\n", m.ID) })
		}
		if err != nil {
			return err
		}
		return c.say(l.Data, func(w io.Writer) {
			table(w, [][]string{
				{"Machine", m.ID},
				{"Owner", l.Data.Owner},
				{"Until", stamp(time.Unix(l.Data.ExpiresAt, 0))},
				{"For", l.Data.Description},
			})
		})
	}))
	return cmd
}
