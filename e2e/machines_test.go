package e2e_test

import (
	"bytes"
	"errors"
	"maps"
	"net"
	"strings"
	"testing"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
)

// A machine's life through the API: made, looked into, suspended and resumed, replaced in place, destroyed. A real
// guest tells its processes, and after an update it is the same machine with the new config.
func TestMachineThroughTheAPI(t *testing.T) {
	t.Parallel()
	s := common(t)
	ctx := t.Context()
	addr := deploy(t, s, "byhand", "testserver", 8080, "min = 0\nidle_timeout = \"10m\"")
	ask(t, addr, "count")
	first := machines(t, s, "byhand")[0]
	like := first.Config
	like.Image = first.ImageRef.Digest // its name is that of a file here
	like.Metadata, like.Services = nil, nil
	like.Env = map[string]string{"MARK": "first"}

	m, err := s.API.CreateMachine(ctx, "byhand", api.CreateMachine{Name: "hand", Config: like})
	if err != nil {
		t.Fatal(err)
	}
	reach := func(state string) {
		t.Helper()
		if err := s.API.Wait(ctx, "byhand", m.ID, state, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	env := func() string {
		t.Helper()
		now, err := s.API.Machine(ctx, "byhand", m.ID)
		if err != nil {
			t.Fatal(err)
		}
		at := net.JoinHostPort(now.IP, "8080")
		eventually(t, "the app listens", func() bool { return askQuietly(at) }) // started says that its process runs
		return ask(t, at, "env MARK")
	}
	reach("started")
	if got := env(); got != "first" {
		t.Errorf("MARK is %q, want first", got)
	}
	ps, err := s.API.Processes(ctx, "byhand", m.ID)
	if err != nil || len(ps) == 0 {
		t.Fatalf("ps: %+v, %v", ps, err)
	}
	if p := ps[0]; p.PID < 2 || p.RSS == 0 || !strings.Contains(p.Command, "testserver") || len(p.ListenSockets) == 0 {
		t.Errorf("ps tells %+v, want the test server with its memory and its sockets", p)
	}
	var out bytes.Buffer
	for file, code := range map[string]int{"/made": 0, "/not/made": 1} {
		e := api.Exec{Command: []string{strings.Fields(ps[0].Command)[0], "touch", file}}
		if res, err := s.API.Exec(ctx, "byhand", m.ID, e, &out, &out); err != nil || res.ExitCode != code {
			t.Errorf("exec touch %s: %+v, %v (%s); want code %d", file, res, err, out.String(), code)
		}
	}
	if mem, err := s.API.Memory(ctx, "byhand", m.ID); err != nil || mem.AvailableMB <= 0 || mem.AvailableMB > mem.LimitMB {
		t.Errorf("memory %+v, %v", mem, err)
	}
	for _, step := range []struct{ action, state string }{{"suspend", "suspended"}, {"start", "started"}} {
		if err := s.API.MachineAction(ctx, "byhand", m.ID, step.action); err != nil {
			t.Fatalf("%s: %v", step.action, err)
		}
		reach(step.state)
	}
	again, err := s.API.Processes(ctx, "byhand", m.ID)
	if err != nil || len(again) == 0 || again[0].PID != ps[0].PID {
		t.Errorf("after suspend and resume ps tells %+v, %v; want process %d still", again, err, ps[0].PID)
	}

	next := like
	next.Env = maps.Clone(like.Env)
	next.Env["MARK"] = "second"
	up := api.UpdateMachine{CreateMachine: api.CreateMachine{Config: next}, CurrentVersion: m.Version}
	updated, err := s.API.UpdateMachine(ctx, "byhand", m.ID, up)
	if err != nil || updated.ID != m.ID || updated.Version == m.Version {
		t.Fatalf("update: %+v, %v", updated, err)
	}
	if _, err := s.API.UpdateMachine(ctx, "byhand", m.ID, up); !errors.Is(err, volant.ErrPrecondition) {
		t.Errorf("a second update of the old version: %v, want a precondition", err)
	}
	reach("started")
	if got := env(); got != "second" {
		t.Errorf("after the update MARK is %q, want second", got)
	}
	if err := s.API.DestroyMachine(ctx, "byhand", m.ID, true); err != nil {
		t.Fatal(err)
	}
	reach("destroyed")
	gone, err := s.API.Machine(ctx, "byhand", m.ID)
	if err != nil || gone.State != "destroyed" || len(gone.Events) == 0 {
		t.Fatalf("the destroyed machine reads as %+v, %v", gone, err)
	}
	var types []string
	for _, e := range gone.Events {
		if len(types) == 0 || types[0] != e.Type {
			types = append([]string{e.Type}, types...)
		}
	}
	if got := strings.Join(types, " "); !strings.HasSuffix(got, "update stop exit start stop exit destroy") {
		t.Errorf("its history is %s", got)
	}
}
