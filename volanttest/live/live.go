// Package live runs a real volant server as a process, as a user would, for the demo, the end-to-end tests
// and the benchmarks.
//
// # Invariants
//
//   - Close ends everything the server made and fails if something is left.
//   - Only processes that this package or the server under test started are ever killed.
package live

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/volant-edge/volant/client"
	"github.com/volant-edge/volant/internal/atomicfile"
)

// Options say which server to run. Bin and Kernel are required.
type Options struct {
	Bin    string   // the volant binary
	Kernel string   // the guest kernel's directory
	Config string   // more lines of server configuration, TOML; tables [api] and [host] are open to keys in Host
	Host   string   // more keys of the [host] table
	Env    []string // more environment of the server
}

// Server is one running server and its data directory.
type Server struct {
	Options
	Dir  string // everything of it; gone after Close
	Data string // its data directory
	API  *client.Client
	// Private is the range of the machines' own addresses.
	Private netip.Prefix

	mu     sync.Mutex // guards the fields below
	cmd    *exec.Cmd
	exited chan struct{}
}

// Start makes a data directory and runs a server on it until its API answers.
func Start(ctx context.Context, o Options) (*Server, error) {
	dir, err := os.MkdirTemp("", "volant-live-")
	if err != nil {
		return nil, err
	}
	s := &Server{Options: o, Dir: dir, Data: filepath.Join(dir, "d")}
	for _, p := range []*string{&s.Bin, &s.Kernel} {
		if *p, err = filepath.Abs(*p); err != nil {
			return nil, err
		}
	}
	edge, private := pools()
	s.Private = private
	text := fmt.Sprintf("data = %q\n%s\n[api]\nlisten = \"127.0.0.1:0\"\n%s\n[host]\nprivate4 = %q\nkernel_dir = %q\n%s\n",
		s.Data, o.Config, edge, private, s.Kernel, o.Host)
	if err := os.WriteFile(s.file("server.toml"), []byte(text), 0o600); err != nil {
		return nil, err
	}
	if err := s.Run(ctx, o.Env...); err != nil {
		return s, err
	}
	return s, nil
}

// pools are the [edge] table with pools of this server's own, so that it does not meet another Volant on the
// machine, and the range of its machines' own addresses.
func pools() (edge string, private netip.Prefix) {
	n, m := 80+rand.IntN(100), rand.IntN(256)
	edge = fmt.Sprintf("[edge]\npool4 = \"127.%d.%d.0/24\"\npool6 = \"fd77:0:0:%02x%02x::/64\"", n, m, n, m)
	return edge, netip.MustParsePrefix(fmt.Sprintf("172.%d.%d.0/24", 28+n%4, m))
}

func (s *Server) file(name string) string { return filepath.Join(s.Dir, name) }

// Run starts the server process on the data directory as it is, and waits until its API answers.
func (s *Server) Run(ctx context.Context, env ...string) error {
	log, err := os.OpenFile(s.file("server.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the child has its own copy
	_ = os.Remove(filepath.Join(s.Data, "api.addr"))
	cmd := exec.Command(s.Bin, "server", "--config", s.file("server.toml"), "--log-level", "debug")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(append(os.Environ(), "VOLANT_CRASH=@"+s.crashFile()), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // Kill and crashes are expected; Ready tells of an exit that is not
		close(exited)
	}()
	s.mu.Lock()
	s.cmd, s.exited = cmd, exited
	s.mu.Unlock()
	return s.ready(ctx, exited)
}

// ErrExited is returned by Run when the server process ended before its API answered.
var ErrExited = errors.New("the server ended before its API answered")

func (s *Server) ready(ctx context.Context, exited <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		addr, _ := os.ReadFile(filepath.Join(s.Data, "api.addr")) // not there yet
		token, _ := os.ReadFile(filepath.Join(s.Data, "root.token"))
		if len(addr) > 0 && len(token) > 0 {
			api := client.New(strings.TrimSpace(string(addr)), strings.TrimSpace(string(token)))
			if _, err := api.Nodes(ctx); err == nil {
				s.API = api
				return nil
			}
			api.Close()
		}
		select {
		case <-exited:
			return s.WithLog(ErrExited)
		case <-ctx.Done():
			return s.WithLog(fmt.Errorf("the server did not come up: %w", ctx.Err()))
		case <-tick.C:
		}
	}
}

// APIAddr is where the server's API listens.
func (s *Server) APIAddr() (netip.AddrPort, error) {
	b, err := os.ReadFile(filepath.Join(s.Data, "api.addr"))
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.ParseAddrPort(strings.TrimSpace(string(b)))
}

// PID is the server's process ID, or 0 when it does not run.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil || s.cmd.Process == nil {
		return 0
	}
	return s.cmd.Process.Pid
}

// Exited is closed when the server process has ended.
func (s *Server) Exited() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.exited
}

// Kill ends the server process with SIGKILL, and nothing else of it.
func (s *Server) Kill() { s.end(syscall.SIGKILL) }

// Stop asks the server to end; proxy and machines stay.
func (s *Server) Stop() { s.end(syscall.SIGTERM) }

func (s *Server) end(sig syscall.Signal) {
	s.mu.Lock()
	cmd, exited := s.cmd, s.exited
	s.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Signal(sig) // it may have ended already
	select {
	case <-exited:
	case <-time.After(20 * time.Second):
		_ = cmd.Process.Kill()
		<-exited
	}
}

// Volant runs a client verb against the server, as a user would.
func (s *Server) Volant(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, s.Bin, append([]string{"--data", s.Data}, args...)...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("volant %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// Deploy writes the app's config, deploys the image and returns the app's IPv4 address.
func (s *Server) Deploy(ctx context.Context, app, image, config string) (string, error) {
	file := s.file(app + ".toml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return "", err
	}
	if _, err := s.API.App(ctx, app); err != nil {
		if _, err := s.API.CreateApp(ctx, app, ""); err != nil {
			return "", err
		}
	}
	if _, err := s.Volant(ctx, "deploy", "--app", app, "--image", image, "--config", file); err != nil {
		return "", err
	}
	a, err := s.API.App(ctx, app)
	if err != nil {
		return "", err
	}
	for _, ip := range a.Addresses {
		if net.ParseIP(ip).To4() != nil {
			return ip, nil
		}
	}
	return "", fmt.Errorf("app %s has no IPv4 address: %v", app, a.Addresses)
}

// WithLog adds the end of the server's log to an error.
func (s *Server) WithLog(err error) error {
	if err == nil {
		return nil
	}
	b, rerr := os.ReadFile(s.file("server.log"))
	if rerr != nil {
		return err
	}
	return fmt.Errorf("%w\nthe server's log ends with:\n%s", err, b[max(0, len(b)-6000):])
}

// Log is all that the server has logged.
func (s *Server) Log() string {
	b, _ := os.ReadFile(s.file("server.log")) // empty if it never ran
	return string(b)
}

// Close ends the server, the proxy and the machines, removes everything of them, and fails if something
// is left.
func (s *Server) Close() error {
	s.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if s.API != nil {
		s.API.Close()
	}
	var errs []error
	if _, err := os.Stat(s.Data); err == nil {
		node := s.Node()
		if _, err := s.Volant(ctx, "cleanup", "--yes"); err != nil {
			errs = append(errs, s.WithLog(err))
		}
		if left := Leaks(s.Dir, node); len(left) > 0 {
			errs = append(errs, fmt.Errorf("left behind: %s", strings.Join(left, "; ")))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(s.Dir))...)
}

// Node is the server's node ID.
func (s *Server) Node() string {
	b, _ := atomicfile.ReadChecked(filepath.Join(s.Data, "node-id"), 64) // none before the first start
	return string(b)
}
