package testserver_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/volant-edge/volant/volanttest/testserver"
)

func serve(t *testing.T, s *testserver.Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve() = %v", err)
		}
	})
	return l.Addr().String()
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func ask(t *testing.T, c net.Conn, command string) string {
	t.Helper()
	got, err := testserver.Ask(c, command)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return got
}

func TestMaxIsKeptAfterConnectionsEnd(t *testing.T) {
	addr := serve(t, new(testserver.Server))
	first := dial(t, addr)
	var others []net.Conn
	for range 9 {
		c := dial(t, addr)
		ask(t, c, "hold")
		others = append(others, c)
	}
	if got := ask(t, first, "count"); got != "10" {
		t.Errorf("count = %s, want 10", got)
	}
	for _, c := range others {
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatalf("read after the end: %v, want EOF", err)
		}
	}
	if got := ask(t, first, "max"); got != "10" {
		t.Errorf("max = %s, want 10", got)
	}
	if got := ask(t, first, "total"); got != "10" {
		t.Errorf("total = %s, want 10", got)
	}
}

func TestEchoChecksBothWays(t *testing.T) {
	s := new(testserver.Server)
	addr := serve(t, s)
	e, err := testserver.StartEcho(dial(t, addr), 7)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, 7, 8, 9, 4096, 60_000} {
		if err := e.Exchange(n); err != nil {
			t.Fatal(err)
		}
	}
	c := dial(t, addr)
	send(t, c, "echo 7\nnot the pattern")
	if b, err := io.ReadAll(c); len(b) > 0 {
		t.Errorf("echo of wrong bytes: %q, %v", b, err)
	}
	if got := s.Bad(); got != 1 {
		t.Errorf("Bad() = %d, want 1", got)
	}
}

func TestExchangeSeesAWrongByte(t *testing.T) {
	near, far := net.Pipe()
	go func() {
		b := make([]byte, 100)
		for _, n := range []int{len("echo 3\n"), 10} {
			if _, err := io.ReadFull(far, b[:n]); err != nil {
				t.Error(err)
			}
		}
		b[5] ^= 1
		if _, err := far.Write(b[:10]); err != nil {
			t.Error(err)
		}
	}()
	e, err := testserver.StartEcho(near, 3)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Exchange(10); !errors.Is(err, testserver.ErrBytes) {
		t.Errorf("Exchange() = %v, want ErrBytes", err)
	}
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func TestSend(t *testing.T) {
	c := dial(t, serve(t, new(testserver.Server)))
	send(t, c, "send 5 100000\n")
	b, err := io.ReadAll(c)
	if err != nil || len(b) != 100_000 || !testserver.Pattern(5).Matches(b) {
		t.Errorf("%d bytes, %v; want 100,000 of the pattern", len(b), err)
	}
}

func TestCommands(t *testing.T) {
	var out bytes.Buffer
	code := -1
	s := &testserver.Server{Stdout: &out, Exit: func(c int) { code = c }}
	c := dial(t, serve(t, s))
	t.Setenv("A_KEY", "a value")
	for _, tt := range []struct{ command, want string }{
		{"ram-counter", "1"},
		{"ram-counter", "2"},
		{"env A_KEY", "a value"},
		{"peer", c.LocalAddr().String()},
		{"dial " + c.RemoteAddr().String(), "connected"},
		{"log one line", ""},
		{"exit 3", ""},
		{"bad", "0"},
	} {
		if got := ask(t, c, tt.command); got != tt.want {
			t.Errorf("%s = %q, want %q", tt.command, got, tt.want)
		}
	}
	if out.String() != "one line\n" || code != 3 {
		t.Errorf("wrote %q and ended with %d", out.String(), code)
	}
	if _, err := testserver.Ask(c, "nonsense"); err == nil {
		t.Error("an unknown command was answered without an error")
	}
}

func TestHTTP(t *testing.T) {
	addr := serve(t, new(testserver.Server))
	for range 2 {
		r, err := http.Get("http://" + addr + "/ram-counter")
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r.Body)
		if err != nil || r.StatusCode != http.StatusOK || !bytes.HasPrefix(b, []byte("ram-counter ")) {
			t.Errorf("status %d, %q, %v", r.StatusCode, b, err)
		}
		r.Body.Close()
	}
	if got := ask(t, dial(t, addr), "total"); got != "2" {
		t.Errorf("total = %s, want 2: one kept-alive for HTTP and this one", got)
	}
}

func TestWebSocketSendsBackEachMessage(t *testing.T) {
	ws, err := testserver.Upgrade(dial(t, serve(t, new(testserver.Server))), "test")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"a", strings.Repeat("b", 125), strings.Repeat("c", 60000), ""} {
		if err := ws.Exchange(text); err != nil {
			t.Errorf("%d bytes: %v", len(text), err)
		}
	}
	if err := ws.Close(); err != nil {
		t.Error(err)
	}
}
