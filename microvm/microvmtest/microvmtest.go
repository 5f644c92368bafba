// Package microvmtest is the conformance suite of microvm.Engine: the sentences of its comments as
// tests, run against the fake and against real engines.
//
// # Not here
//
// How fast an engine is: package bench. What an engine does beyond the interface: its own tests.
package microvmtest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/microvm"
)

// patience bounds every wait for a guest. An emulated one on a busy machine takes seconds.
const patience = 2 * time.Minute

// Fixture is an engine under test, with what its guests need.
type Fixture struct {
	// Open returns the engine as a server that has just started has it; each call is a restart. An
	// engine that holds on to VMs is an io.Closer: Close lets go of them, as the server's end does.
	Open func(t testing.TB) microvm.Engine
	// Spec returns a spec with drives and links of its own for the ID, the same for the same ID.
	Spec func(t testing.TB, id string) microvm.Spec
	// Config returns what the guest of that spec is configured with.
	Config func(spec microvm.Spec) guest.Config
	// Count is a command in the guest that adds one to a number in RAM and prints it.
	Count []string
	// Name is a command in the guest that prints the ID of the spec its drive is of.
	Name []string
	// Serves checks that the guest's app answers over the spec's link. May be nil.
	Serves func(t testing.TB, spec microvm.Spec)
	// Die ends the VMM by no call of the engine.
	Die func(t testing.TB, vm microvm.VM)
	// Left lists processes, files and memory of this engine that exist now, for a person.
	Left func(t testing.TB) []string
}

// Run runs the suite on the fixture.
func Run(t *testing.T, f Fixture) {
	r := &rig{f: f, e: f.Open(t), dir: t.TempDir()}
	if _, err := r.e.Probe(t.Context()); err != nil {
		t.Fatalf("Probe: %v", err)
	}
	for _, c := range []struct {
		name string
		test func(*testing.T, *rig)
	}{
		{"a cold VM runs no instruction before Resume, and then its agent answers", testCold},
		{"Resume and Pause are idempotent, and a paused guest stands still", testPause},
		{"a new link ends the one before", testLink},
		{"a guest that shuts down ends its VMM", testShutdown},
		{"a VMM that dies closes Done, and cannot be adopted", testDeath},
		{"a VM stays paused after its snapshot and can be resumed", testSnapshot},
		{"a suspended VM goes on where it was, again and again", testSuspend},
		{"a template is restored many times, with other drives", testTemplate},
		{"a restarted server adopts a VM", testAdopt},
		{"a cancelled Create or Restore leaves nothing behind", testCancel},
		{"an ID is used once at a time", testTwice},
		{"a snapshot that does not fit is refused and leaves nothing behind", testDamage},
		{"Sweep removes what keep does not name", testSweep},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.test(t, r)
			if left := f.Left(t); len(left) > 0 {
				t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
			}
		})
		r.sweep(t)
	}
}

// rig is the fixture with its engine, and the template that most tests start from.
type rig struct {
	f        Fixture
	e        microvm.Engine
	template microvm.Snapshot
	dir      string // of the template, outside every test's
}

func (r *rig) sweep(t *testing.T) {
	if _, err := r.e.Sweep(context.Background(), func(string) bool { return false }); err != nil {
		t.Errorf("Sweep: %v", err)
	}
}

func background(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// create makes a cold VM and resumes it.
func (r *rig) create(t testing.TB, id string) microvm.VM {
	t.Helper()
	vm, err := r.e.Create(background(t), r.f.Spec(t, id))
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	resume(t, vm)
	return vm
}

// restore makes a VM from a snapshot and resumes it.
func (r *rig) restore(t testing.TB, s microvm.Snapshot, id string) microvm.VM {
	t.Helper()
	vm, err := r.e.Restore(background(t), s, r.f.Spec(t, id))
	if err != nil {
		t.Fatalf("Restore: %v", err)
	}
	resume(t, vm)
	return vm
}

// start returns a VM of the template with its app running.
func (r *rig) start(t *testing.T, id string) (microvm.VM, *guest.Session) {
	t.Helper()
	if r.template.Dir == "" {
		r.makeTemplate(t)
	}
	vm := r.restore(t, r.template, id)
	s := open(t, vm)
	r.configure(t, s, vm)
	return vm, s
}

func (r *rig) makeTemplate(t *testing.T) {
	t.Helper()
	vm := r.create(t, "template")
	s := open(t, vm)
	closeSession(t, s)
	snap := snapshot(t, vm, filepath.Join(r.dir, "template"))
	end(t, vm)
	snap.Template = true
	r.template = snap
}

func (r *rig) configure(t testing.TB, s *guest.Session, vm microvm.VM) {
	t.Helper()
	c := r.f.Config(r.f.Spec(t, vm.ID()))
	c.Now, c.Entropy = time.Now(), make([]byte, 32)
	if err := s.Configure(background(t), c); err != nil {
		t.Fatalf("Configure: %v", err)
	}
	if err := s.Start(background(t)); err != nil {
		t.Fatalf("Start: %v", err)
	}
}

// count adds one to the number in the guest's RAM and returns it.
func (r *rig) count(t testing.TB, s *guest.Session) int {
	t.Helper()
	n, err := strconv.Atoi(r.run(t, s, r.f.Count))
	if err != nil {
		t.Fatalf("Exec %q: %v", r.f.Count, err)
	}
	return n
}

func (r *rig) run(t testing.TB, s *guest.Session, args []string) string {
	t.Helper()
	var out, errs strings.Builder
	exit, err := s.Exec(background(t), guest.Exec{Args: args, Stdout: &out, Stderr: &errs})
	if err != nil || exit.Code != 0 {
		t.Fatalf("Exec %q: exit %+v, error %v, stderr %q", args, exit, err, errs.String())
	}
	return strings.TrimSpace(out.String())
}

// wantOwn checks that a guest has the drive and the link of its own spec.
func (r *rig) wantOwn(t testing.TB, s *guest.Session, vm microvm.VM) {
	t.Helper()
	if got := r.run(t, s, r.f.Name); got != vm.ID() {
		t.Errorf("the drive of %s is of %q", vm.ID(), got)
	}
	if r.f.Serves != nil {
		r.f.Serves(t, r.f.Spec(t, vm.ID()))
	}
}

func (r *rig) wantCount(t testing.TB, s *guest.Session, want int) {
	t.Helper()
	if got := r.count(t, s); got != want {
		t.Errorf("the number in the guest's RAM is %d, want %d", got, want)
	}
}

func thaw(t testing.TB, s *guest.Session) {
	t.Helper()
	if err := s.Thaw(background(t), guest.Thaw{Now: time.Now(), Entropy: make([]byte, 32)}); err != nil {
		t.Fatalf("Thaw: %v", err)
	}
}

func resume(t testing.TB, vm microvm.VM) {
	t.Helper()
	if err := vm.Resume(background(t)); err != nil {
		t.Fatalf("Resume: %v", err)
	}
}

func pause(t testing.TB, vm microvm.VM) {
	t.Helper()
	if err := vm.Pause(background(t)); err != nil {
		t.Fatalf("Pause: %v", err)
	}
}

func openLink(t testing.TB, vm microvm.VM) io.ReadWriteCloser {
	t.Helper()
	link, err := vm.OpenLink(background(t))
	if err != nil {
		t.Fatalf("OpenLink: %v", err)
	}
	return link
}

func open(t testing.TB, vm microvm.VM) *guest.Session {
	t.Helper()
	s, err := guest.Open(background(t), openLink(t, vm))
	if err != nil {
		t.Fatalf("guest.Open: %v", err)
	}
	return s
}

func closeSession(t testing.TB, s *guest.Session) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Errorf("Session.Close: %v", err)
	}
}

func snapshot(t testing.TB, vm microvm.VM, dir string) microvm.Snapshot {
	t.Helper()
	s, err := vm.Snapshot(background(t), dir)
	if err != nil {
		t.Fatalf("Snapshot: %v", err)
	}
	return s
}

// end kills and removes a VM.
func end(t testing.TB, vm microvm.VM) {
	t.Helper()
	if err := vm.Kill(background(t)); err != nil {
		t.Fatalf("Kill: %v", err)
	}
	select {
	case <-vm.Done():
	default:
		t.Error("Done is open after Kill")
	}
	if err := vm.Remove(background(t)); err != nil {
		t.Errorf("Remove: %v", err)
	}
}

func awaitDone(t testing.TB, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-background(t).Done():
		t.Fatalf("%s did not end", what)
	}
}

func want(t testing.TB, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: error %v, want %v", what, err, kind)
	}
}

// again returns the handle as it comes back from disk.
func again(t testing.TB, h microvm.Handle) microvm.Handle {
	t.Helper()
	b, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	var back microvm.Handle
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	return back
}

func contains(list []string, part string) bool {
	return slices.ContainsFunc(list, func(s string) bool { return strings.Contains(s, part) })
}
