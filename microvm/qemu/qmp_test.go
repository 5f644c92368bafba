package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// monitorPair returns a client and the connection of its server.
func monitorPair(t testing.TB, onEvent func(string, json.RawMessage)) (*monitor, net.Conn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	m := newMonitor(c, onEvent)
	t.Cleanup(func() {
		m.close()
		server.Close()
	})
	return m, server
}

// say writes as the server.
func say(t *testing.T, server io.Writer, format string, args ...any) {
	if _, err := fmt.Fprintf(server, format, args...); err != nil {
		t.Errorf("server: %v", err)
	}
}

func TestMonitorAnswersInOrder(t *testing.T) {
	events := make(chan string, 1)
	m, server := monitorPair(t, func(name string, _ json.RawMessage) { events <- name })
	go func() {
		say(t, server, `{"QMP":{"version":{},"capabilities":[]}}`+"\r\n")
		r := bufio.NewReader(server)
		for i := range 2 {
			line, _ := r.ReadBytes('\n')
			var req struct{ ID uint64 }
			if err := json.Unmarshal(line, &req); err != nil {
				t.Error(err)
			}
			say(t, server, `{"event":"STOP"}`+"\n"+`{"return":{"n":%d},"id":%d}`+"\n", i, req.ID)
		}
		line, _ := r.ReadBytes('\n')
		var req struct{ ID uint64 }
		if err := json.Unmarshal(line, &req); err != nil {
			t.Error(err)
		}
		say(t, server, `{"error":{"class":"GenericError","desc":"no such thing"},"id":%d}`+"\n", req.ID)
	}()
	go func() { <-events; <-events }()
	got, err := m.do(t.Context(), nil, call("a", nil), call("b", map[string]int{"x": 1}))
	if err != nil || string(got) != `{"n":1}` {
		t.Errorf("do = %s, %v", got, err)
	}
	_, err = m.do(t.Context(), nil, call("c", nil))
	var refused *qmpError
	if !errors.As(err, &refused) || refused.Desc != "no such thing" {
		t.Errorf("do of a refused command: error %v", err)
	}
}

func TestMonitorEndsItsCalls(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(server net.Conn) error
	}{
		{"the server closes", func(s net.Conn) error { return s.Close() }},
		{"the server sends no JSON", func(s net.Conn) error { _, err := fmt.Fprintln(s, "garbage"); return err }},
		{"the server sends an endless line", func(s net.Conn) error {
			_, _ = s.Write(bytes.Repeat([]byte{'{'}, maxMessage+1)) // the client may close while it is written
			return nil
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, server := monitorPair(t, func(string, json.RawMessage) {})
			go func() {
				if _, err := bufio.NewReader(server).ReadBytes('\n'); err != nil {
					t.Errorf("server: %v", err)
				}
				if err := c.end(server); err != nil {
					t.Errorf("server: %v", err)
				}
			}()
			if _, err := m.do(t.Context(), nil, call("wait", nil)); !errors.Is(err, errMonitor) {
				t.Errorf("do: error %v", err)
			}
			if _, err := m.do(t.Context(), nil, call("late", nil)); !errors.Is(err, errMonitor) {
				t.Errorf("do afterwards: error %v", err)
			}
		})
	}
	m, _ := monitorPair(t, func(string, json.RawMessage) {})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.do(ctx, nil, call("wait", nil)); !errors.Is(err, context.Canceled) {
		t.Errorf("do with an ended ctx: error %v", err)
	}
}

func FuzzReadMessage(f *testing.F) {
	for _, s := range []string{
		`{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}`,
		`{"return": {"status": "paused", "running": false}, "id": 3}`,
		`{"error": {"class": "GenericError", "desc": "x"}, "id": 18446744073709551615}`,
		`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "MIGRATION", "data": {"status": "completed"}}`,
		`{"id": -1}`, `null`, `[]`, "", strings.Repeat("a", maxMessage),
	} {
		f.Add([]byte(s + "\r\n"))
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(b), maxMessage)
		v := vm{moves: make(chan string, 1), opened: make(chan struct{})}
		for {
			msg, err := readMessage(r)
			if err != nil {
				return
			}
			for _, name := range []string{"MIGRATION", "SHUTDOWN", "VSERPORT_CHANGE"} {
				v.event(name, msg.Data)
			}
		}
	})
}

// sparse writes a file of some pages of data between holes and zeroes.
func sparse(t *testing.T, dir string) (f *os.File, size int64) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "source"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	size = 8 << 20
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, 3 * page, 1<<20 + 5*page, size - page} {
		if _, err := f.WriteAt(bytes.Repeat([]byte{byte(at>>12) + 1}, page), at); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.WriteAt(make([]byte, 1<<20), 4<<20); err != nil { // zeroes that are no hole
		t.Fatal(err)
	}
	return f, size
}

func TestPackAndUnpackKeepTheMemory(t *testing.T) {
	dir := t.TempDir()
	src, size := sparse(t, dir)
	packed, err := os.Create(filepath.Join(dir, "packed"))
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	sum, err := pack(t.Context(), packed, src, size)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []*os.File{src, packed} {
		if got, err := sumMemory(t.Context(), f, size); err != nil || got != sum {
			t.Errorf("sum of %s = %s, %v; want %s", f.Name(), got, err, sum)
		}
	}
	data := int64(0)
	if err := extents(packed, size, func(from, to int64) error { data += to - from; return nil }); err != nil {
		t.Fatal(err)
	}
	if data > 1<<20 {
		t.Errorf("the packed file holds %d bytes of data for 4 pages", data)
	}
	back, err := os.Create(filepath.Join(dir, "back"))
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	if err := back.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := unpack(t.Context(), back, packed, size); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(src.Name())
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(back.Name())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the memory came back changed")
	}
	if _, err := packed.WriteAt([]byte{1}, 2<<20); err != nil {
		t.Fatal(err)
	}
	if got, err := sumMemory(t.Context(), packed, size); err != nil || got == sum {
		t.Errorf("the sum of changed memory is the same, error %v", err)
	}
}

func TestSinkTakesOnlySoMuch(t *testing.T) {
	f, err := sink("test")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := f.Write(bytes.Repeat([]byte("0123456789abcde\n"), maxConsole/8))
	if err == nil || n > maxConsole {
		t.Errorf("wrote %d bytes, error %v", n, err)
	}
	if got := tail(f, nil); len(got) != maxExitLog/2 || !strings.HasSuffix(got, "abcde\n") {
		t.Errorf("the tail has %d bytes and ends %q", len(got), got[len(got)-6:])
	}
}

func TestTSCIsTheHosts(t *testing.T) {
	a, err := MeasureTSC(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if a != 0 && (a < 100_000 || a > 20_000_000) {
		t.Errorf("the counter runs at %d kHz", a)
	}
	for _, c := range []struct {
		a, b int
		same bool
	}{{2_600_000, 2_600_900, true}, {2_600_000, 2_596_000, false}, {0, 0, true}, {0, 2_600_000, false}} {
		if got := sameClock(c.a, c.b); got != c.same {
			t.Errorf("sameClock(%d, %d) = %v", c.a, c.b, got)
		}
	}
}

func TestArgsEscapeCommas(t *testing.T) {
	if got := comma("a,b"); got != "a,,b" {
		t.Errorf("comma = %q", got)
	}
	tcg := shape(accelTCG)
	if tcg == shape(accelKVM) {
		t.Error("shape does not tell accelerators apart")
	}
	if again := shape(accelTCG); tcg != again {
		t.Errorf("shape of the same = %s, then %s", tcg, again)
	}
}

func TestVersion(t *testing.T) {
	for in, want := range map[string]string{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright\n": "7.2.22",
		"": "unknown", "version": "unknown",
	} {
		if got := version(in); got != want {
			t.Errorf("version(%q) = %q, want %q", in, got, want)
		}
	}
}
