package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/volant-edge/volant/kernel"
	"github.com/volant-edge/volant/node"
)

func newSetup(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "setup", Short: "Prepare this server"}
	var file, dir, config string
	var ifMissing bool
	k := &cobra.Command{
		Use: "kernel", Short: "Unpack the guests' kernel out of Debian's linux-image-cloud-amd64", Args: cobra.NoArgs,
		Long: `Unpack the guests' kernel out of Debian's package linux-image-cloud-amd64 into Volant's data.

The package is downloaded by apt-get, or taken from --file; it is never installed on this machine.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := readConfig(config)
			if err != nil {
				return err
			}
			if dir == "" {
				dir = cfg.Host.KernelDir
			}
			if dir == "" {
				data := g.data
				if cfg.Data != "" && !cmd.Flags().Changed("data") {
					data = cfg.Data
				}
				if dir, err = node.KernelDir(data); err != nil {
					return err
				}
			}
			if _, err := kernel.Load(dir); err == nil && ifMissing {
				return nil
			}
			return kernel.Setup(cmd.Context(), dir, file, func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), line) })
		},
	}
	k.Flags().StringVar(&file, "file", "", "a .deb of the kernel's package, instead of a download")
	k.Flags().StringVar(&dir, "dir", "", "where to put it (default: kernel in the data directory)")
	k.Flags().StringVar(&config, "config", "", "server configuration, which may name another data directory or host.kernel_dir")
	k.Flags().BoolVar(&ifMissing, "if-missing", false, "do nothing where a kernel is there")
	cmd.AddCommand(k)
	return cmd
}

func newCleanup(g *globals) *cobra.Command {
	var yes bool
	var id string
	cmd := &cobra.Command{
		Use: "cleanup", Short: "End everything of this node but its data: proxy, machines, taps, rules, cgroups", Args: cobra.NoArgs,
		Long: `End everything that this node made outside its data directory: the proxy, the machines, taps, firewall
rules, routes, cgroups and memory files. Open connections end. The data directory stays; delete it by hand.

The server must not be running. Where the data directory is gone, name the node with --node.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !yes {
				return fmt.Errorf("this ends all machines of the node and their connections: say --yes")
			}
			done, err := node.Cleanup(cmd.Context(), g.data, id)
			if err == nil && len(done) == 0 {
				done = []string{"nothing was left"}
			}
			for _, line := range done {
				fmt.Fprintln(cmd.OutOrStdout(), line)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	cmd.Flags().StringVar(&id, "node", "", "the node's ID, where its data directory is gone")
	return cmd
}

func newControl(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "control", Short: "Act on the intent of this server"}
	var from, config string
	var skip bool
	restore := &cobra.Command{
		Use: "restore", Short: "Seed a new store from a node's copy of the intent", Args: cobra.NoArgs,
		Long: `Seed a new store of the intent (etcd) from the copy that this node keeps, or from --from, under the next
cluster epoch. What the old store held is set aside, not deleted. The server must not be running.

With several control nodes this is for when more than half of them are lost for good. Run it on one server, which
becomes the only member of the new store, and start it; the others join it by themselves. With an etcd of yours
([store] in the file of --config) the copy goes there; it must have nothing under its prefix.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := readConfig(config)
			if err != nil {
				return err
			}
			text, err := node.Restore(cmd.Context(), node.RestoreConfig{Data: g.data, From: from, SkipDamaged: skip, Store: cfg.Store})
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), text)
			}
			return err
		},
	}
	restore.Flags().StringVar(&from, "from", "", "file of a copy (default: this node's)")
	restore.Flags().StringVar(&config, "config", "", "server configuration, a TOML file; only for an etcd of yours")
	restore.Flags().BoolVar(&skip, "skip-damaged", false, "leave records out that cannot be read")
	cmd.AddCommand(restore)
	return cmd
}
