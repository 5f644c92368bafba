package main

import (
	"context"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/appfile"
	"github.com/volant-edge/volant/client"
)

// call is one run of a verb that asks the server.
type call struct {
	*client.Client
	*globals
	ctx  context.Context
	cmd  *cobra.Command
	args []string
}

// ask makes the RunE of a verb that asks the server.
func (g *globals) ask(run func(*call) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := g.client()
		if err != nil { // said when the server is asked: what is wrong with the command comes first
			c = client.NewTransport("http://nobody", "", nowhere{err})
		}
		return run(&call{Client: c, globals: g, ctx: cmd.Context(), cmd: cmd, args: args})
	}
}

// nowhere is the transport to a server that is not known.
type nowhere struct{ err error }

func (n nowhere) RoundTrip(*http.Request) (*http.Response, error) { return nil, n.err }

// appFlag names an app: --app, an argument, or the config file of this directory.
type appFlag struct{ name string }

func (a *appFlag) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&a.name, "app", "a", "", "the app (default: the one that the config file here names)")
}

// of is the app's name; args has it at most.
func (a *appFlag) of(args []string) (string, error) {
	switch {
	case a.name != "" && len(args) > 0 && args[0] != a.name:
		return "", volant.Invalidf("two apps are named, %s by --app and %s", a.name, args[0]).WithRemedy("name one")
	case a.name != "":
		return a.name, nil
	case len(args) > 0:
		return args[0], nil
	}
	if name := appHere(); name != "" {
		return name, nil
	}
	return "", volant.Invalidf("which app?").WithRemedy("name it with --app, or go to a directory whose %s names it", appfile.Names[0])
}

// appArg is the app that --app or an argument names.
func appArg(flag string, args []string) (string, error) { return (&appFlag{flag}).of(args) }

// askApp is a verb about one app.
func (g *globals) askApp(use, short string, run func(*call, string) error) *cobra.Command {
	var app appFlag
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: g.ask(func(c *call) error {
			args := c.args
			if c.cmd.Args != nil && !strings.Contains(use, "[APP]") {
				args = nil // they are something else
			}
			name, err := app.of(args)
			if err != nil {
				return err
			}
			return run(c, name)
		}),
	}
	if strings.Contains(use, "[APP]") {
		cmd.Args = cobra.MaximumNArgs(1)
	}
	app.add(cmd)
	return cmd
}

// configHere is the config file of this directory, or "".
func configHere() string {
	for _, name := range appfile.Names {
		if _, err := os.Stat(name); err == nil {
			return name
		}
	}
	return ""
}

// appHere is the app that the config file of this directory names, or "".
func appHere() string {
	name := configHere()
	if name == "" {
		return ""
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return "" // then no app is named, which is said
	}
	return appfile.App(name, b)
}
