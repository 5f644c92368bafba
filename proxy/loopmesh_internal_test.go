package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/backhaul"
	"github.com/volant-edge/volant/why"
)

// meshSite is an edge and a host on the kernel's loopback, with one app whose machine, on the host, is a server of
// the test.
type meshSite struct {
	site // of the edge; held is the host's
	host *Proxy
	mesh [2]netip.Addr
}

const meshTestApp = volant.AppID("app_00000000000000aa")

func newMeshSite(t *testing.T, soft, hard int) *meshSite {
	t.Helper()
	app, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := app.Addr().(*net.TCPAddr).AddrPort()
	block := [2]byte{byte(1 + rand.IntN(250)), byte(1 + rand.IntN(250))} // other tests run at the same time
	m := &meshSite{site: site{t: t, app: app}}
	var fronts [2]netip.AddrPort
	for i := range m.mesh {
		m.mesh[i] = netip.AddrFrom4([4]byte{127, block[0], block[1], byte(1 + i)})
		fronts[i] = netip.AddrPortFrom(m.mesh[i], 8000)
	}
	m.front = fronts[0]
	var ps [2]*Proxy
	for i := range ps {
		p, err := New(Config{Epoch: uint64(5 + i)})
		if err != nil {
			t.Fatal(err)
		}
		ps[i] = p
		id := volant.MachineID("00000000000001")
		mc := Machine{ID: id, Seq: 1, Phase: PhaseServing, Addr: at.Addr()}
		if i == 0 {
			mc = Machine{ID: id, Node: "00000002"}
		}
		table := Table{Version: 1, Node: []volant.NodeID{"00000001", "00000002"}[i], Region: "ams", Apps: []App{{
			ID: meshTestApp, Group: "app", Name: "web", MaxQueue: 20000, MaxPerPeer: 20000,
			Services: []Service{{Listen: []netip.AddrPort{fronts[i]}, InternalPort: at.Port(), Soft: soft, Hard: hard}}, Machines: []Machine{mc},
		}}, Mesh: m.mesh[i], Peers: []Peer{{Node: []volant.NodeID{"00000002", "00000001"}[i], Addr: m.mesh[1-i], Region: "ams"}}}
		if err := p.SetTable(t.Context(), table); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("run: %v", err)
			}
			if n := p.open.Load(); n != 0 {
				t.Errorf("node %d: %d connections are open after the end", i, n)
			}
		})
	}
	t.Cleanup(func() { app.Close() })
	m.p, m.host = ps[0], ps[1]
	m.p.SetRemote("00000002", Remote{Machine: "00000000000001", State: &RemoteState{Phase: PhaseServing, Seq: 1}})
	m.eventually("the host listens", func() bool {
		c, err := net.Dial("tcp", netip.AddrPortFrom(m.mesh[1], volant.BackhaulPort).String())
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return m
}

func (m *meshSite) held() int {
	slots, _ := m.host.Slots(context.Background())
	return slots["00000000000001"]
}

func TestMeshLoopCarriesEveryByteBothWays(t *testing.T) {
	s := newMeshSite(t, 20, 25)
	for _, speaks := range []string{"client", "machine", "both"} {
		client := s.dial()
		if speaks != "machine" {
			s.write(client, []byte("hello"))
		}
		machine := s.accept()
		up, down := bytes.Repeat([]byte("up and "), 1<<20), bytes.Repeat([]byte("down!"), 1<<20)
		var wg sync.WaitGroup
		send := func(c *net.TCPConn, b []byte) { s.write(c, b); s.must(c.CloseWrite()) }
		wg.Go(func() { send(machine, down) })
		var got []byte
		wg.Go(func() {
			var err error
			got, err = io.ReadAll(client)
			s.must(err)
		})
		send(client, up)
		gotUp, err := io.ReadAll(machine)
		s.must(err)
		wg.Wait()
		want := up
		if speaks != "machine" {
			want = append([]byte("hello"), up...)
		}
		if !bytes.Equal(gotUp, want) || !bytes.Equal(got, down) {
			t.Errorf("%s speaks first: %d bytes up, want %d; %d down, want %d; or others", speaks, len(gotUp), len(want), len(got), len(down))
		}
		s.eventually("the slot is free", func() bool { return s.held() == 0 })
		s.endsAs(endBoth)
		recs, err := s.p.Query(t.Context(), why.Query{Limit: 1})
		if err != nil || recs[0].Attrs["bytes_up"] == "" || !strings.Contains(recs[0].Text, "on node 00000002 in region ams over the backhaul") {
			t.Errorf("record %+v, %v", recs, err)
		}
	}
}

func TestMeshLoopHalfCloseEitherWay(t *testing.T) {
	s := newMeshSite(t, 20, 25)
	for _, first := range []string{"client", "machine", "client at once"} {
		client := s.dial()
		if first == "client at once" {
			s.write(client, []byte("ask"))
			s.must(client.CloseWrite())
		}
		machine := s.accept()
		a, b := client, machine
		if first == "machine" {
			a, b = b, a
		}
		if first != "client at once" {
			s.write(a, []byte("ask"))
			s.must(a.CloseWrite())
		}
		if got, err := io.ReadAll(b); err != nil || string(got) != "ask" {
			t.Fatalf("%s first: read %q, %v", first, got, err)
		}
		if s.held() != 1 {
			t.Errorf("%s first: %d slots while one side is open, want 1", first, s.held())
		}
		s.write(b, []byte("answer"))
		b.Close()
		if got, err := io.ReadAll(a); err != nil || string(got) != "answer" {
			t.Fatalf("%s first: read %q, %v", first, got, err)
		}
		a.Close()
		s.eventually("the slot is free", func() bool { return s.held() == 0 })
	}
}

func TestMeshLoopResets(t *testing.T) {
	s := newMeshSite(t, 20, 25)
	client := s.dial()
	machine := s.accept()
	s.reset(client)
	if n, err := machine.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("machine read %d, %v; want the end", n, err)
	}
	machine.Close()
	s.eventually("the slot is free", func() bool { return s.held() == 0 })
	client = s.dial()
	machine = s.accept()
	s.write(machine, []byte("last words"))
	if _, err := io.ReadFull(client, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	s.reset(machine)
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("client read %v, want a reset", err)
	}
	s.eventually("the slot is free", func() bool { return s.held() == 0 })
}

func TestMeshLoopWaitsAndIsCancelled(t *testing.T) {
	s := newMeshSite(t, 1, 1)
	first := s.dial()
	s.write(first, []byte("x"))
	m1 := s.accept()
	second, third := s.dial(), s.dial()
	s.write(second, []byte("second"))
	waiting := func() int {
		pic, err := s.host.Picture(t.Context(), meshTestApp)
		s.must(err)
		return pic.Waiting
	}
	s.eventually("two wait at the host", func() bool { return waiting() == 2 })
	s.reset(third)
	s.eventually("one waits at the host", func() bool { return waiting() == 1 })
	first.Close()
	m1.Close()
	m2 := s.accept()
	b := make([]byte, 6)
	if _, err := io.ReadFull(m2, b); err != nil || string(b) != "second" {
		t.Errorf("machine read %q, %v", b, err)
	}
	if s.held() != 1 {
		t.Errorf("%d slots are held, hard limit 1", s.held())
	}
	second.Close()
	m2.Close()
	s.eventually("the slot is free", func() bool { return s.held() == 0 })
}

func TestMeshLoopLostEdge(t *testing.T) {
	s := newMeshSite(t, 20, 25)
	client, machine := s.pair()
	s.host.LosePeer("00000001")
	s.eventually("the slot is free", func() bool { return s.held() == 0 })
	if _, err := machine.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("machine read %v, want a reset", err)
	}
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("client read %v, want a reset", err)
	}
}

// TestMeshLoopSameNumberTwice is what a second handshake does: the host acts on one of both.
func TestMeshLoopSameNumberTwice(t *testing.T) {
	s := newMeshSite(t, 20, 25)
	app, _ := backhaul.AppOf(meshTestApp)
	group, _ := backhaul.NameOf("app")
	req := backhaul.Request{EdgeEpoch: 9, Stream: 77, HostEpoch: 6, App: app, Group: group, Port: s.app.Addr().(*net.TCPAddr).AddrPort().Port()}
	frame := backhaul.AppendRequest(nil, &req)
	ask := func(parts ...[]byte) (net.Conn, backhaul.Answer) {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(s.mesh[0], 0))}
		c, err := d.Dial("tcp", netip.AddrPortFrom(s.mesh[1], volant.BackhaulPort).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		for _, b := range parts {
			s.write(c, b)
			time.Sleep(5 * time.Millisecond)
		}
		var ans backhaul.Answer
		b := make([]byte, backhaul.AnswerLen)
		s.must(c.SetReadDeadline(time.Now().Add(5 * time.Second)))
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(err)
		}
		s.must(backhaul.ParseAnswer(b, &ans))
		return c, ans
	}
	c, ans := ask(frame[:10], frame[10:80], slices.Concat(frame[80:], []byte("early")))
	if ans.Code != backhaul.OK || ans.Slots != 1 || ans.Epoch != 6 || ans.Machine.ID() != "00000000000001" {
		t.Fatalf("answer %+v, want OK", ans)
	}
	m := s.accept()
	b := make([]byte, 5)
	if _, err := io.ReadFull(m, b); err != nil || string(b) != "early" {
		t.Errorf("machine read %q, %v", b, err)
	}
	if _, ans := ask(frame); ans.Code != backhaul.Seen {
		t.Errorf("answer %+v, want that it was seen", ans)
	}
	old := req
	old.EdgeEpoch, old.Stream = 8, 1
	if _, ans := ask(backhaul.AppendRequest(nil, &old)); ans.Code != backhaul.WrongEpoch {
		t.Errorf("answer %+v to an earlier boot's, want that it is of the wrong epoch", ans)
	}
	old = req
	old.HostEpoch, old.Stream = 5, 78
	if _, ans := ask(backhaul.AppendRequest(nil, &old)); ans.Code != backhaul.WrongEpoch || ans.Epoch != 6 {
		t.Errorf("answer %+v to one for an earlier boot, want that it is of the wrong epoch", ans)
	}
	other := slices.Clone(frame)
	other[0] = 200
	if _, ans := ask(other); ans.Code != backhaul.OtherVersion {
		t.Errorf("answer %+v to another version, want that it is one", ans)
	}
	gone := req
	gone.Port, gone.Stream = 1, 79
	if _, ans := ask(backhaul.AppendRequest(nil, &gone)); ans.Code != backhaul.Gone {
		t.Errorf("answer %+v for a port that nobody has, want that it is gone", ans)
	}
	c.Close()
	m.Close()
	s.eventually("the slot is free", func() bool { return s.held() == 0 })
}
