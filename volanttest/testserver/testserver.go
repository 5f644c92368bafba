// Package testserver is the app that tests and benchmarks run in machines: a TCP server which counts
// its own connections and checks every byte.
//
// A connection begins with a line. If that is an HTTP request, HTTP is spoken; else it is a command:
//
//	max           answers "max N": the most connections that were ever open at once, this one included
//	count         answers "count N": how many are open now
//	total         answers "total N": how many were accepted in all
//	bad           answers "bad N": how many echoes had a wrong byte
//	ram-counter   answers "ram-counter N": one more each time, so it tells if memory was kept
//	inner         exchanges bytes over a connection to itself and appends to a file, both opened once and
//	              kept open, and answers "inner N" the N-th time
//	hostname      answers "hostname NAME"
//	peer          answers "peer ADDRESS": where the connection comes from, as seen here
//	env KEY       answers "env VALUE"
//	log TEXT      writes a line to stdout, and answers "log"
//	hold          answers "holding", and then nothing until the other side closes
//	echo SEED     sends back what it receives, which must be Pattern(SEED): at the first wrong byte
//	              it closes. When the other side ends its half, it ends its own
//	send SEED N   sends N bytes of Pattern(SEED) and closes
//	dial ADDRESS  answers "dial connected" if a TCP connection comes about within 2 s, else "dial" and why not
//	exit N        ends the process
//	oom           takes memory until the kernel objects
//
// After an answer, except for hold, echo and send, the next command may follow. In HTTP the path is
// the command: GET /env/KEY, GET /max; GET / greets. A request to upgrade to a websocket gets one, which sends
// back each message.
//
// # Invariants
//
//   - A connection counts from accept until its socket is closed here.
//   - Max never goes down.
package testserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// maxLine bounds a command.
const maxLine = 4096

// Server serves. Its zero value is ready.
type Server struct {
	Stdout io.Writer      // for log; nil is os.Stdout
	Exit   func(code int) // for exit; nil is os.Exit
	Name   string         // for hostname; "" is the host's

	mu         sync.Mutex // guards the two below
	count, max int

	total, bad, ram atomic.Int64
	inner           inner
	web             *webListener
}

// Serve accepts connections until ctx is done, and then returns nil.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	s.web = &webListener{make(chan net.Conn), l.Addr(), ctx.Done()}
	h := &http.Server{Handler: http.HandlerFunc(s.http)}
	go h.Serve(s.web)                                    //nolint:errcheck // it ends with ctx
	defer h.Close()                                      //nolint:errcheck // nobody is left to tell
	stop := context.AfterFunc(ctx, func() { l.Close() }) //nolint:errcheck // ends Accept, which tells
	defer stop()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		var temporary net.Error
		if errors.As(err, &temporary) && temporary.Timeout() {
			continue
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		s.opened()
		go s.serve(&counted{Conn: c, s: s})
	}
}

func (s *Server) opened() {
	s.total.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count++
	s.max = max(s.max, s.count)
}

// close ends a connection and counts it out in one step: whoever sees its end and connects anew is never
// counted beside it.
func (s *Server) close(c net.Conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count--
	return c.Close()
}

// Counts are the connections open now, the most at once, and all.
func (s *Server) Counts() (now, most, total int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count, s.max, int(s.total.Load())
}

// Bad is how many echoes had a wrong byte.
func (s *Server) Bad() int { return int(s.bad.Load()) }

// counted is counted out when it is closed, once.
type counted struct {
	net.Conn
	s    *Server
	once sync.Once
}

func (c *counted) Close() (err error) {
	c.once.Do(func() { err = c.s.close(c.Conn) })
	return err
}

// serve speaks with one connection; it ends with the connection.
func (s *Server) serve(c *counted) {
	r := bufio.NewReaderSize(c, 64<<10)
	if head, err := r.Peek(4); err == nil && isHTTP(string(head)) {
		select {
		case s.web.conns <- &buffered{c, r}:
		case <-s.web.done:
			c.Close() //nolint:errcheck // nothing more to do for it
		}
		return
	}
	defer c.Close() //nolint:errcheck // nothing more to do for it
	for {
		line, err := readLine(r)
		if err != nil {
			return
		}
		args := strings.Fields(line)
		if len(args) == 0 {
			continue
		}
		switch args[0] {
		case "hold":
			fmt.Fprintln(c, "holding") //nolint:errcheck // a client that went away ends the read
			io.Copy(io.Discard, r)     //nolint:errcheck // until it ends, however it does
			return
		case "echo":
			s.echo(c, r, number(args, 1))
			return
		case "send":
			io.CopyN(c, Pattern(number(args, 1)), int64(number(args, 2))) //nolint:errcheck // the other side counts
			return
		}
		if _, err := fmt.Fprintln(c, s.command(args, c.RemoteAddr())); err != nil {
			return
		}
	}
}

func isHTTP(head string) bool {
	return head == "GET " || head == "HEAD" || head == "POST" || head == "PUT " || head == "PRI "
}

func readLine(r *bufio.Reader) (string, error) {
	var line []byte
	for {
		b, err := r.ReadByte()
		if err != nil || b == '\n' {
			return strings.TrimSuffix(string(line), "\r"), err
		}
		if len(line) == maxLine {
			return "", errors.New("line too long")
		}
		line = append(line, b)
	}
}

func number(args []string, i int) uint64 {
	if i >= len(args) {
		return 0
	}
	n, err := strconv.ParseUint(args[i], 10, 63)
	if err != nil {
		return 0
	}
	return n
}

// command answers a command that has a one-line answer.
func (s *Server) command(args []string, peer net.Addr) string {
	now, most, total := s.Counts()
	switch args[0] {
	case "max":
		return fmt.Sprintf("max %d", most)
	case "count":
		return fmt.Sprintf("count %d", now)
	case "total":
		return fmt.Sprintf("total %d", total)
	case "bad":
		return fmt.Sprintf("bad %d", s.bad.Load())
	case "ram-counter":
		return fmt.Sprintf("ram-counter %d", s.ram.Add(1))
	case "inner":
		return s.inner.step(s.web.addr)
	case "hostname":
		return s.hostname()
	case "peer":
		return "peer " + peer.String()
	case "env":
		return "env " + os.Getenv(strings.Join(args[1:], " "))
	case "log":
		out := s.Stdout
		if out == nil {
			out = os.Stdout
		}
		if _, err := fmt.Fprintln(out, strings.Join(args[1:], " ")); err != nil {
			return "error " + err.Error()
		}
		return "log"
	case "dial":
		return "dial " + reach(strings.Join(args[1:], " "))
	case "exit":
		exit := s.Exit
		if exit == nil {
			exit = os.Exit
		}
		exit(int(number(args, 1)))
		return "exit"
	case "oom":
		takeMemory()
		return "oom"
	default:
		return fmt.Sprintf("error unknown command %q", args[0])
	}
}

func (s *Server) hostname() string {
	if s.Name != "" {
		return "hostname " + s.Name
	}
	name, err := os.Hostname()
	if err != nil {
		return "error " + err.Error()
	}
	return "hostname " + name
}

// reach says whether an address accepts connections from here.
func reach(addr string) string {
	c, err := net.DialTimeout("tcp", addr, 2*time.Second)
	if err != nil {
		return strings.ReplaceAll(err.Error(), "\n", " ")
	}
	if err := c.Close(); err != nil {
		return err.Error()
	}
	return "connected"
}

// takeMemory takes and touches memory without an end.
func takeMemory() {
	var all [][]byte
	for {
		b := make([]byte, 16<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		all = append(all, b)
		if len(all) > 1<<16 { // 1 TiB: no machine has it
			return
		}
	}
}

// echo sends back what comes, as long as it is the pattern.
func (s *Server) echo(c net.Conn, r *bufio.Reader, seed uint64) {
	want := Pattern(seed)
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		if !want.Matches(buf[:n]) {
			s.bad.Add(1)
			return
		}
		if _, werr := c.Write(buf[:n]); werr != nil {
			return
		}
		if err != nil {
			return // an end of their half: closing ends ours, after what was written
		}
	}
}

func (s *Server) http(w http.ResponseWriter, r *http.Request) {
	if isWebSocket(r) {
		s.webSocket(w, r)
		return
	}
	args := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if args[0] == "" {
		args[0] = "hostname"
	}
	peer, err := net.ResolveTCPAddr("tcp", r.RemoteAddr)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintln(w, s.command(args, peer)) //nolint:errcheck // a client that went away
}

// buffered is a connection of which some bytes were read ahead.
type buffered struct {
	*counted
	r *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// webListener hands connections that speak HTTP to the HTTP server.
type webListener struct {
	conns chan net.Conn
	addr  net.Addr
	done  <-chan struct{}
}

func (l *webListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *webListener) Close() error   { return nil }
func (l *webListener) Addr() net.Addr { return l.addr }
