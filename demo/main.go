// Command demo shows the main job on one machine, with times: a real program out of an OCI image boots in a
// microVM on its first connection, a second microVM comes with the 21st, a third with the 60th, all fall
// asleep when their users go, and the next connection wakes one. It ends with an error if any of this did
// not happen, and leaves nothing behind.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/client"
	"github.com/volant-edge/volant/volanttest/live"
)

func main() {
	bin := flag.String("volant", "build/volant", "the volant binary")
	kernel := flag.String("kernel", "build/kernel", "the guest kernel's directory")
	image := flag.String("image", "build/images/nginx.tar", "the OCI archive of nginx")
	config := flag.String("config", "demo/demo.toml", "the app's volant.toml")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	d := &demo{bin: *bin, kernel: *kernel, image: *image, config: *config, start: time.Now()}
	err := d.run(ctx)
	if cerr := d.cleanup(); cerr != nil {
		err = errors.Join(err, cerr)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
	d.say("Done. Nothing is left: no process, tap, rule, mount or file.")
}

type demo struct {
	bin, kernel, image, config string
	start                      time.Time
	srv                        *live.Server
	api                        *client.Client
	addr                       string
}

func (d *demo) say(format string, args ...any) {
	fmt.Printf("[%6.2fs] %s\n", time.Since(d.start).Seconds(), fmt.Sprintf(format, args...))
}

func (d *demo) run(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		d.serve, d.deploy, d.firstConnection, d.scaleOut, d.scaleIn, d.wake, d.explain,
	} {
		if err := step(ctx); err != nil {
			if d.srv == nil {
				return err
			}
			return d.srv.WithLog(err)
		}
	}
	return nil
}

func (d *demo) serve(ctx context.Context) (err error) {
	d.srv, err = live.Start(ctx, live.Options{Bin: d.bin, Kernel: d.kernel})
	if err != nil {
		return err
	}
	d.api = d.srv.API
	nodes, err := d.api.Nodes(ctx)
	if err != nil {
		return err
	}
	d.say("Started volant server (pid %d) on an empty data directory. Engine: %s.", d.srv.PID(), nodes[0].EngineWhy)
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// volant runs a client verb as a user would.
func (d *demo) volant(ctx context.Context, args ...string) error {
	fmt.Printf("          $ volant %s\n", strings.Join(args, " "))
	out, err := d.srv.Volant(ctx, args...)
	for line := range strings.Lines(out) {
		fmt.Print("          ", line)
	}
	return err
}

func (d *demo) deploy(ctx context.Context) error {
	if err := d.volant(ctx, "apps", "create", "demo"); err != nil {
		return err
	}
	if err := d.volant(ctx, "deploy", "--app", "demo", "--image", "oci-archive:"+d.image, "--config", d.config); err != nil {
		return err
	}
	app, err := d.api.App(ctx, "demo")
	if err != nil {
		return err
	}
	if len(app.Addresses) == 0 {
		return errors.New("the app got no address")
	}
	d.addr = net.JoinHostPort(app.Addresses[0], "80")
	if n := d.awake(ctx); n != 0 {
		return fmt.Errorf("with min = 0 the first deploy booted %d machines, want 0", n)
	}
	d.say("Deployed nginx at http://%s with min = 0: no machine runs.", app.Addresses[0])
	return nil
}

func (d *demo) machines(ctx context.Context) []api.Machine {
	ms, err := d.api.Machines(ctx, "demo")
	if err != nil {
		return nil
	}
	return ms
}

func (d *demo) awake(ctx context.Context) int {
	n := 0
	for _, m := range d.machines(ctx) {
		if m.State == string(volant.StateStarted) {
			n++
		}
	}
	return n
}

// until waits for a condition of the machines.
func (d *demo) until(ctx context.Context, limit time.Duration, what string, ok func([]api.Machine) bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		ms := d.machines(ctx)
		if ms != nil && ok(ms) {
			return nil
		}
		if pause(ctx, 10*time.Millisecond) != nil {
			return fmt.Errorf("within %s this did not happen: %s; machines: %s", limit, what, states(ms))
		}
	}
}

func states(ms []api.Machine) string {
	var out []string
	for _, m := range ms {
		out = append(out, fmt.Sprintf("%s %s with %d connections", m.ID, m.State, m.Slots))
	}
	return strings.Join(out, ", ")
}

// user is one client who keeps his connection open.
type user struct {
	conn net.Conn
	r    *bufio.Reader
}

func (d *demo) connect(ctx context.Context) (*user, error) {
	dialer := &net.Dialer{Timeout: 30 * time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", d.addr)
	if err != nil {
		return nil, err
	}
	u := &user{conn, bufio.NewReader(conn)}
	return u, u.get()
}

// get asks for the page over the open connection.
func (u *user) get() error {
	if err := u.conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(u.conn, "GET / HTTP/1.1\r\nHost: demo\r\n\r\n"); err != nil {
		return err
	}
	res, err := http.ReadResponse(u.r, nil)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }() // read to its end below
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK || !strings.Contains(res.Header.Get("Server"), "nginx") {
		return fmt.Errorf("got %s from %q, want 200 from nginx", res.Status, res.Header.Get("Server"))
	}
	return nil
}

func (d *demo) firstConnection(ctx context.Context) error {
	began := time.Now()
	u, err := d.connect(ctx)
	if err != nil {
		return fmt.Errorf("first connection: %w", err)
	}
	d.say("First connection: a microVM was made and booted, nginx answered after %d ms.", time.Since(began).Milliseconds())
	return u.conn.Close()
}

func (d *demo) scaleOut(ctx context.Context) error {
	var users []*user
	defer func() {
		for _, u := range users {
			_ = u.conn.Close() // the users go; nothing to tell them
		}
	}()
	open := func(n int) error {
		for len(users) < n {
			u, err := d.connect(ctx)
			if err != nil {
				return fmt.Errorf("connection %d: %w", len(users)+1, err)
			}
			users = append(users, u)
		}
		return nil
	}
	count := func(want int) func([]api.Machine) bool {
		return func(ms []api.Machine) bool {
			n := 0
			for _, m := range ms {
				if m.State == string(volant.StateStarted) && !m.Draining {
					n++
				}
			}
			return n >= want
		}
	}
	if err := open(20); err != nil {
		return err
	}
	if err := pause(ctx, 300*time.Millisecond); err != nil {
		return err
	}
	if ms := d.machines(ctx); len(ms) != 1 {
		return fmt.Errorf("with 20 connections there are %d machines, want 1: %s", len(ms), states(ms))
	}
	d.say("20 connections are open: one machine holds them all.")
	began := time.Now()
	if err := open(21); err != nil {
		return err
	}
	if err := d.until(ctx, 30*time.Second, "a second machine with the 21st connection", count(2)); err != nil {
		return err
	}
	d.say("The 21st connection: a second machine was serving %d ms later.", time.Since(began).Milliseconds())
	if err := open(59); err != nil {
		return err
	}
	if err := open(60); err != nil {
		return err
	}
	if err := d.until(ctx, 30*time.Second, "a third machine with 60 connections", count(3)); err != nil {
		return err
	}
	if err := pause(ctx, 300*time.Millisecond); err != nil { // slots are told every 50 ms
		return err
	}
	d.say("60 connections are open: three machines serve (%s).", states(d.machines(ctx)))
	for i, u := range users {
		if err := u.get(); err != nil {
			return fmt.Errorf("connection %d was lost: %w", i+1, err)
		}
	}
	d.say("All 60 connections still answer.")
	return nil
}

func (d *demo) scaleIn(ctx context.Context) error {
	began := time.Now()
	d.say("All users left.")
	err := d.until(ctx, time.Minute, "all machines asleep", func(ms []api.Machine) bool {
		for _, m := range ms {
			if m.State != string(volant.StateSuspended) {
				return false
			}
		}
		return true
	})
	if err != nil {
		return err
	}
	d.say("All %d machines are suspended, %.1f s after the last user (idle_timeout 2 s): no process, no memory.", len(d.machines(ctx)), time.Since(began).Seconds())
	return nil
}

func (d *demo) wake(ctx context.Context) error {
	began := time.Now()
	u, err := d.connect(ctx)
	if err != nil {
		return fmt.Errorf("connection to sleeping machines: %w", err)
	}
	d.say("The next connection woke a machine: nginx answered after %d ms.", time.Since(began).Milliseconds())
	if n := d.awake(ctx); n != 1 {
		return fmt.Errorf("one connection woke %d machines, want 1", n)
	}
	return u.conn.Close()
}

func (d *demo) explain(ctx context.Context) error {
	return d.volant(ctx, "why", "demo", "--kind", "scale,wake,sleep", "--limit", "12")
}

// cleanup ends everything that the demo started, and fails if something is left.
func (d *demo) cleanup() error {
	if d.srv == nil {
		return nil
	}
	return d.srv.Close()
}
