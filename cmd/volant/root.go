package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/client"
	"github.com/volant-edge/volant/node"
)

// defaultData is where a server keeps its state unless told otherwise.
const defaultData = "/var/lib/volant"

// globals are the flags every client verb knows.
type globals struct {
	addr  string
	token string
	data  string
	json  bool

	dial func() (*client.Client, error) // in place of what the flags name; for tests
}

func newRoot(g *globals) *cobra.Command {
	root := &cobra.Command{
		Use:           "volant",
		Short:         "Run apps from OCI images in microVMs that come and go with their connections",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	f := root.PersistentFlags()
	f.StringVar(&g.addr, "addr", os.Getenv("VOLANT_ADDR"), "address of the API, host:port (default: the server of --data)")
	f.StringVar(&g.token, "token", os.Getenv("VOLANT_TOKEN"), "bearer token (default: the root token of --data)")
	f.StringVar(&g.data, "data", envOr("VOLANT_DATA", defaultData), "data directory of the server on this machine")
	f.BoolVar(&g.json, "json", false, "print JSON")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return volant.Invalidf("%v", err).WithRemedy("see `%s --help`", cmd.CommandPath())
	})
	root.AddCommand(
		newServer(g), newProxy(g), newMesh(g), newDoctor(g), newSetup(g), newCleanup(g), newControl(g), newVersion(g),
		newApps(g), newConfig(g), newLaunch(g), newDeploy(g), newStatus(g), newMachine(g), newScale(g), newReleases(g),
		newImage(g), newLogs(g), newWhy(g), newNodes(g), newRegions(g), newJoinToken(g),
		newSecrets(g),
		newTokens(g), newOrgs(g), newCerts(g), newIPs(g), newCA(g),
		newLab(g),
	)
	explainArgs(root)
	return root
}

// explainArgs makes each verb's complaint about its arguments say what it takes.
func explainArgs(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		explainArgs(sub)
	}
	check := cmd.Args
	if check == nil {
		return
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return volant.Invalidf("`%s` was given %s", cmd.CommandPath(), counted(args)).
				WithRemedy("write `%s`, or see `%s --help`", cmd.UseLine(), cmd.CommandPath())
		}
		return nil
	}
}

func counted(args []string) string {
	switch len(args) {
	case 0:
		return "no argument"
	case 1:
		return fmt.Sprintf("the one argument %q", args[0])
	}
	return fmt.Sprintf("the %d arguments %q", len(args), args)
}

func envOr(key, def string) string {
	if v := os.Getenv(key); v != "" {
		return v
	}
	return def
}

// client returns a client of the server that the flags name, or of the one on this machine.
func (g *globals) client() (*client.Client, error) {
	if g.dial != nil {
		return g.dial()
	}
	addr, token := g.addr, g.token
	if addr == "" {
		b, err := os.ReadFile(filepath.Join(g.data, "api.addr"))
		switch {
		case err == nil:
			addr = strings.TrimSpace(string(b))
		case os.IsPermission(err):
			return nil, volant.Errorf(volant.ErrForbidden, "the data directory %s belongs to root", g.data).
				WithRemedy("run this as root, or name the server and a token with --addr and --token")
		default:
			return nil, volant.Errorf(volant.ErrUnavailable, "no server has run with the data directory %s", g.data).
				WithRemedy("start one with `volant server`, or name it with --data, or with --addr and --token")
		}
	}
	if token == "" {
		b, err := os.ReadFile(filepath.Join(g.data, "root.token"))
		if err == nil {
			token = strings.TrimSpace(string(b))
		}
		// While no server runs anybody may listen on its port; the root token goes to root's socket alone.
		socket := filepath.Join(g.data, "run", node.APISocket)
		if g.addr == "" && token != "" {
			return client.NewSocket(socket, addr, token), nil
		}
	}
	return client.New(addr, token), nil
}
