package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/volant-edge/volant/client"
	"github.com/volant-edge/volant/internal/ociarchive"
	"github.com/volant-edge/volant/volanttest"
)

// TestScripts runs testdata/script/*.txtar, each against a platform of its own in a bubble: a server with its
// API, the proxy, and machines of the fake engine, in no real time. Beside testscript's own commands there are
//
//	volant ARG…          the command line, in this process
//	exits CODE volant …  the same, which must end with that code
//	machine-of APP VAR   put the ID of the app's newest machine into a variable
//	connect APP          connect to port 80 of the app and see it answer
//	layout DIR           make a directory with an OCI image in it
//	input FILE           what the next volant reads from standard input
//	elapse DURATION      let time pass
//
// The variables IMAGE, BROKEN and CRASHING are digests of images the server has: one that serves on port 8080,
// one that ends at once, and one that ends after three seconds.
func TestScripts(t *testing.T) {
	testscript.RunT(bubble{t}, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       os.Getenv("VOLANT_UPDATE_SCRIPTS") != "",
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			p := volanttest.New(env.T().(bubble).T) //nolint:forcetypeassert // it is what RunT was given
			env.Defer(p.Close)
			env.Values[platform{}], env.Values[input{}] = p, new([]byte)
			env.Setenv("IMAGE", string(volanttest.Image))
			env.Setenv("BROKEN", string(volanttest.Broken))
			env.Setenv("CRASHING", string(volanttest.Crashing))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"volant": func(ts *testscript.TestScript, neg bool, args []string) {
				if code := runVolant(ts, args); (code != 0) != neg {
					ts.Fatalf("volant %s: exit code %d", strings.Join(args, " "), code)
				}
			},
			"exits": func(ts *testscript.TestScript, _ bool, args []string) {
				if len(args) < 2 || args[1] != "volant" {
					ts.Fatalf("usage: exits CODE volant ARG…")
				}
				want, err := strconv.Atoi(args[0])
				ts.Check(err)
				if code := runVolant(ts, args[2:]); code != want {
					ts.Fatalf("exit code %d, want %d", code, want)
				}
			},
			"machine-of": machineOf,
			"input": func(ts *testscript.TestScript, _ bool, args []string) {
				*inputOf(ts) = []byte(ts.ReadFile(args[0]))
			},
			"connect": connect,
			"layout":  layout,
			"elapse": func(ts *testscript.TestScript, _ bool, args []string) {
				d, err := time.ParseDuration(args[0])
				ts.Check(err)
				time.Sleep(d)
				synctest.Wait()
			},
		},
	})
}

// platform and input are the keys of a script's platform, and of what the next volant reads.
type (
	platform struct{}
	input    struct{}
)

func inputOf(ts *testscript.TestScript) *[]byte {
	return ts.Value(input{}).(*[]byte) //nolint:forcetypeassert // Setup put it there
}

func platformOf(ts *testscript.TestScript) *volanttest.Platform {
	return ts.Value(platform{}).(*volanttest.Platform) //nolint:forcetypeassert // Setup put it there
}

// runVolant runs the command line and returns its exit code.
func runVolant(ts *testscript.TestScript, args []string) int {
	p := platformOf(ts)
	g := &globals{dial: func() (*client.Client, error) {
		return client.NewTransport("http://test", p.Token(), p.Transport()), nil
	}}
	before, err := os.Getwd()
	ts.Check(err)
	ts.Check(os.Chdir(ts.MkAbs(".")))
	defer func() { ts.Check(os.Chdir(before)) }()
	root := newRoot(g)
	root.SetIn(bytes.NewReader(*inputOf(ts)))
	*inputOf(ts) = nil
	root.SetOut(ts.Stdout())
	root.SetErr(ts.Stderr())
	root.SetArgs(args)
	return finish(ts.Stderr(), root.Execute(), g.json)
}

func machineOf(ts *testscript.TestScript, _ bool, args []string) {
	ms := platformOf(ts).Machines(args[0])
	if len(ms) == 0 {
		ts.Fatalf("app %s has no machine", args[0])
	}
	newest := ms[0]
	for _, m := range ms {
		if m.CreatedAt.After(newest.CreatedAt) {
			newest = m
		}
	}
	ts.Setenv(args[1], newest.ID)
}

func connect(ts *testscript.TestScript, neg bool, args []string) {
	p := platformOf(ts)
	a, err := p.API.App(context.Background(), args[0])
	ts.Check(err)
	err = errors.New("the app has no address")
	if len(a.Addresses) > 0 {
		var c io.Closer
		if c, err = p.Connect(netip.AddrPortFrom(netip.MustParseAddr(a.Addresses[0]), 80)); err == nil {
			ts.Check(c.Close())
		}
	}
	if (err != nil) != neg {
		ts.Fatalf("connect to %s: %v", args[0], err)
	}
	fmt.Fprintln(ts.Stdout(), "answered") // a string's builder
}

func layout(ts *testscript.TestScript, _ bool, args []string) {
	files, _, err := ociarchive.Image{}.Files()
	ts.Check(err)
	for name, b := range files {
		path := filepath.Join(ts.MkAbs(args[0]), name)
		ts.Check(os.MkdirAll(filepath.Dir(path), 0o755))
		ts.Check(os.WriteFile(path, b, 0o600))
	}
}

// bubble runs each script in a bubble of its own, one after the other: they change the working directory.
type bubble struct{ *testing.T }

func (b bubble) Run(name string, f func(testscript.T)) {
	b.T.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { f(bubble{t}) })
	})
}

func (bubble) Parallel()     {}
func (bubble) Verbose() bool { return testing.Verbose() }

// Verbs that act on this machine and not through the API are tested elsewhere.
var local = []string{"server", "proxy", "mesh", "doctor", "setup", "cleanup", "control", "version", "completion", "ca"}

func TestEachVerbHasAScript(t *testing.T) {
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d scripts, %v", len(files), err)
	}
	var all strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
	}
	var look func(cmd *cobra.Command)
	look = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			look(sub)
		}
		if cmd.Runnable() && cmd.HasParent() && !strings.Contains(all.String(), cmd.CommandPath()+" ") && !strings.Contains(all.String(), cmd.CommandPath()+"\n") {
			t.Errorf("no script in testdata/script says `%s`", cmd.CommandPath())
		}
	}
	for _, cmd := range newRoot(&globals{}).Commands() {
		if !slices.Contains(local, cmd.Name()) {
			look(cmd)
		}
	}
}
