package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/node"
)

func newServer(g *globals) *cobra.Command {
	var file, listen, region, level, name, joinAt, tokenFile, endpoint string
	var roles, stores []string
	cmd := &cobra.Command{
		Use: "server", Short: "Run this server: intent, API, images, machines and scaling", Args: cobra.NoArgs,
		Long: `Run this server: it keeps the intent, serves the API, runs machines and scales apps.

It starts the proxy (volant proxy) as a process of its own, which outlives it, as machines do: a restart
or crash of the server closes no connection.

With --join it becomes a server of the cluster that another one belongs to, once; later starts need neither --join nor
a token. See the guide on clusters.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := readConfig(file)
			if err != nil {
				return err
			}
			if cfg.Data == "" || cmd.Flags().Changed("data") {
				cfg.Data = g.data
			}
			if listen != "" {
				cfg.API.Listen = listen
			}
			if region != "" {
				cfg.Region = volant.Region(region)
			}
			setIf(&cfg.Name, name)
			setIf(&cfg.Mesh.Endpoint, endpoint)
			setIf(&cfg.Join.Server, joinAt)
			setIf(&cfg.Join.TokenFile, tokenFile)
			if len(stores) > 0 {
				cfg.Store.Endpoints = stores
			}
			if len(roles) > 0 {
				cfg.Roles = roles
			}
			if cfg.Join.Server != "" && tokenFile == "" {
				cfg.Join.Token = g.token
			}
			log, err := newLog(level)
			if err != nil {
				return err
			}
			cfg.Log, cfg.Version = log, version()
			if cfg.Crash, err = crashPoint(os.Getenv("VOLANT_CRASH")); err != nil {
				return err
			}
			if cfg.Crash != nil {
				log.Warn("VOLANT_CRASH is set: this process may kill itself, for a test")
			}
			return node.Serve(cmd.Context(), cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&file, "config", "", "server configuration, a TOML file")
	f.StringVar(&listen, "listen", "", "address of the API (default 127.0.0.1:4280)")
	f.StringVar(&region, "region", "", "code of the place this server is in (default local)")
	f.StringVar(&name, "name", "", "name of this server (default: the host name)")
	f.StringSliceVar(&roles, "roles", nil, "what a new server does: edge, host, control (default: all on the first, edge and host on one that joins)")
	f.StringVar(&endpoint, "endpoint", "", "HOST:PORT at which other servers reach this one; UDP, and TCP to join by")
	f.StringVar(&joinAt, "join", "", "join the cluster of the control node at HOST:PORT, by the join token of --token")
	f.StringSliceVar(&stores, "etcd-endpoints", nil, "URLs of an etcd of yours that keeps the intent, in place of one on the control nodes")
	f.StringVar(&tokenFile, "token-file", "", "file with the join token, so that it is not seen in the list of processes")
	f.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	cmd.AddCommand(newServerConfig(), newServerPoints(g))
	return cmd
}

// newServerConfig prints the configuration with its defaults.
func newServerConfig() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "config", Short: "Print the server's configuration with its defaults", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := readConfig(file)
			if err != nil {
				return err
			}
			return toml.NewEncoder(cmd.OutOrStdout()).Encode(node.WithDefaults(cfg))
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "server configuration, a TOML file")
	return cmd
}

// setIf sets what a flag says.
func setIf(to *string, flag string) {
	if flag != "" {
		*to = flag
	}
}

func readConfig(file string) (node.Config, error) {
	var cfg node.Config
	if file == "" {
		return cfg, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return cfg, volant.Invalidf("server configuration: %v", err)
	}
	dec := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	err = dec.Decode(&cfg)
	var strict *toml.StrictMissingError
	var bad *toml.DecodeError
	switch {
	case errors.As(err, &strict):
		row, col := strict.Errors[0].Position()
		return cfg, volant.Invalidf("%s:%d:%d: unknown key %q", file, row, col, strings.Join(strict.Errors[0].Key(), ".")).
			WithRemedy("see `volant server config` for the keys there are")
	case errors.As(err, &bad):
		row, col := bad.Position()
		return cfg, volant.Invalidf("%s:%d:%d: %s", file, row, col, plain(strings.TrimPrefix(bad.Error(), "toml: ")))
	case err != nil:
		return cfg, volant.Invalidf("%s: %s", file, plain(err.Error()))
	}
	return cfg, nil
}

// plain takes the names of Go functions out of a message.
func plain(text string) string {
	return strings.ReplaceAll(text, "netip.ParsePrefix", "not an address prefix such as 10.1.0.0/16: ")
}

func newLog(level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, volant.Invalidf("log level %q: use debug, info, warn or error", level)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l})), nil
}

// version is the module's version, or the commit of a build from source.
func version() string {
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range bi.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return s.Value[:12]
		}
	}
	if v := bi.Main.Version; v != "" {
		return v
	}
	return "devel"
}

func newVersion(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.print(cmd, map[string]string{"version": version()}, func(w io.Writer) { fmt.Fprintln(w, "volant", version()) })
		},
	}
}
