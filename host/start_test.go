package host_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/host"
	"github.com/volant-edge/volant/microvm"
	"github.com/volant-edge/volant/microvm/fake"
)

func TestRestartOfTheServerIsNotSeenByMachines(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		_, id := awakeRig(t, r)
		g := r.world.Guest(string(id))
		g.Log("stdout", "one")
		r.proxy.hold(id, 2)
		r.SetSlots(id, 2)
		if err := r.Drain(t.Context(), id, host.Drain{On: true, Then: host.AskSuspend, Term: 7}); err != nil {
			t.Fatal(err)
		}
		before := r.have(id)
		r.stop()
		g.Log("stdout", "two")
		r.start() // without a word of control
		v := r.have(id)
		if v.State != volant.StateStarted || !v.Draining || v.Orphan || v.Memory != 512 || v.IP != before.IP {
			t.Errorf("got %+v", v)
		}
		if v.Epoch <= before.Epoch || v.Seq <= before.Seq {
			t.Errorf("order (%d, %d) after (%d, %d)", v.Epoch, v.Seq, before.Epoch, before.Seq)
		}
		if r.world.Guest(string(id)) != g {
			t.Error("the VM was made anew")
		}
		if err := r.Drain(t.Context(), id, host.Drain{Term: 6}); !errors.Is(err, volant.ErrStaleTerm) {
			t.Errorf("an old term after the restart: %v", err)
		}
		r.SetWishes([]volant.Machine{machine(1)})
		r.settle()
		if got := logTexts(t, r, id, -1); !slices.Equal(got, []string{"one", "two"}) {
			t.Errorf("log %q", got)
		}
		if v := r.have(id); v.State != volant.StateStarted {
			t.Fatalf("it is %s", v.State)
		}
		r.proxy.hold(id, 0)
		r.SetSlots(id, 0)
		r.await(id, volant.StateSuspended)
		r.stop()
		r.start()
		r.wake(id)
		if v := r.await(id, volant.StateStarted); v.Cold {
			t.Error("the snapshot did not survive a restart of the server")
		}
	})
}

func TestOrphanServesAndWakes(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		_, id := awakeRig(t, r)
		r.SetWishes(nil)
		if v := r.have(id); v.State != volant.StateStarted || !v.Orphan {
			t.Errorf("got %+v", v)
		}
		r.SetWishes([]volant.Machine{machine(1)})
		if v := r.have(id); v.Orphan {
			t.Error("still an orphan")
		}
		r.SetWishes(nil)
		r.suspend(id)
		r.wake(id)
		r.await(id, volant.StateStarted)
		r.SetWishes([]volant.Machine{changed(machine(1), func(m *volant.Machine) { m.Tombstone = true })})
		r.await(id, volant.StateDestroyed)
		r.SetWishes(nil)
		if got := r.Haves(); len(got) != 0 {
			t.Errorf("got %v", got)
		}
	})
}

func TestServerThatWasBooted(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		on := machine(2, func(m *volant.Machine) { m.Run = volant.RunOn })
		asleep := machine(3)
		all := []volant.Machine{machine(1), on, asleep}
		r.SetWishes(all)
		for _, m := range all {
			r.wake(idOf(m))
			r.await(idOf(m), volant.StateStarted)
		}
		r.suspend(idOf(asleep))
		r.stop()
		for _, id := range r.world.Running() {
			r.world.Die(id, microvm.VMExit{Signal: 9})
		}
		r.cfg.HostBoot = "boot-2"
		r.start()
		r.settle()
		if v := r.have(idOf(machine(1))); v.State != volant.StateStopped {
			t.Errorf("the auto machine is %s", v.State)
		}
		if v := r.have(idOf(on)); v.State != volant.StateStarted {
			t.Errorf("the machine that is to be on is %s", v.State)
		}
		if v := r.have(idOf(asleep)); v.State != volant.StateSuspended {
			t.Errorf("the suspended machine is %s", v.State)
		}
	})
}

func TestVMThatDiedMeanwhile(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		_, id := awakeRig(t, r)
		r.stop()
		r.world.Die(string(id), microvm.VMExit{Signal: 9})
		r.start()
		r.settle()
		if v := r.have(id); v.State != volant.StateStarted || v.Boots != 2 {
			t.Errorf("got %+v", v)
		}
	})
}

func TestLeftoversAreSwept(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		r.settle()
		r.stop()
		stray := idOf(machine(9))
		for _, p := range []string{"scratch/" + string(stray) + ".img", "snapshots/" + string(stray) + "-1", "logs/x", "templates/old"} {
			if err := os.WriteFile(filepath.Join(r.dir, p), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := r.links.Attach(t.Context(), stray, "o"); err != nil {
			t.Fatal(err)
		}
		if err := r.groups.Add(t.Context(), stray, 1); err != nil {
			t.Fatal(err)
		}
		vm, err := r.deps().Engine.Create(t.Context(), microvm.Spec{
			ID: string(stray), VCPUs: 1, MemoryMiB: 128, Drives: []microvm.Drive{{Path: "/x"}},
		})
		if err != nil || vm == nil {
			t.Fatal(err)
		}
		r.start()
		for _, dir := range []string{"scratch", "snapshots", "logs"} {
			if got := entries(t, filepath.Join(r.dir, dir)); len(got) != 0 {
				t.Errorf("%s: %v", dir, got)
			}
		}
		if got := entries(t, filepath.Join(r.dir, "templates")); len(got) != 2 {
			t.Errorf("templates: %v", got)
		}
		if len(r.links.all()) != 0 || len(r.world.Kept()) != 0 || len(r.groups.m) != 0 {
			t.Errorf("left: links %v, VMs %v, cgroups %v", r.links.all(), r.world.Kept(), r.groups.m)
		}
	})
}

func TestDamagedRecordIsPutAside(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		_, id := awakeRig(t, r)
		r.stop()
		path := filepath.Join(r.dir, "journal", "machines", string(id)+".json")
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)-3] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		r.start()
		if got := r.world.Running(); len(got) != 0 {
			t.Errorf("VMs without a record: %v", got)
		}
		r.SetWishes([]volant.Machine{machine(1)})
		r.settle()
		r.wake(id)
		r.await(id, volant.StateStarted)
	})
}

func logTexts(t *testing.T, r *rig, id volant.MachineID, tail int) []string {
	t.Helper()
	var texts []string
	var last uint64
	err := r.Logs(t.Context(), id, tail, false, func(l host.LogLine) error {
		if l.Seq <= last {
			t.Errorf("line %d after %d", l.Seq, last)
		}
		last = l.Seq
		texts = append(texts, l.Text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return texts
}

func TestLogs(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.cfg.LogBytes = 4096
		_, id := awakeRig(t, r)
		g := r.world.Guest(string(id))
		for i := range 200 {
			g.Log("stdout", fmt.Sprintf("line %d", i))
		}
		synctest.Wait()
		if got := logTexts(t, r, id, 2); !slices.Equal(got, []string{"line 198", "line 199"}) {
			t.Errorf("tail %q", got)
		}
		if got := logTexts(t, r, id, -1); len(got) < 20 || len(got) > 100 || got[len(got)-1] != "line 199" {
			t.Errorf("%d lines are kept in 8 KiB, the last %q", len(got), got[len(got)-1])
		}
		var follow []string
		stop := errors.New("enough")
		done := make(chan error, 1)
		go func() {
			done <- r.Logs(t.Context(), id, 0, true, func(l host.LogLine) error {
				if follow = append(follow, l.Text); len(follow) == 2 {
					return stop
				}
				return nil
			})
		}()
		synctest.Wait()
		g.Log("stderr", "new 1")
		r.suspend(id)
		r.wake(id)
		r.await(id, volant.StateStarted)
		r.world.Guest(string(id)).Log("stdout", "new 2")
		if err := <-done; !errors.Is(err, stop) || !slices.Equal(follow, []string{"new 1", "new 2"}) {
			t.Errorf("followed %q, %v", follow, err)
		}
	})
}

func TestExecAndSignal(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		_, id := awakeRig(t, r)
		var out, errs bytes.Buffer
		exit, err := r.Exec(t.Context(), id, guest.Exec{Args: []string{"echo", "hello"}, Stdout: &out, Stderr: &errs})
		if err != nil || exit.Code != 0 || strings.TrimSpace(out.String()) != "hello" {
			t.Errorf("exec: %+v, %v, %q", exit, err, out.String())
		}
		if err := r.Signal(t.Context(), id, 15); err != nil {
			t.Error(err)
		}
		r.await(id, volant.StateStopped)
		if _, err := r.Exec(t.Context(), id, guest.Exec{Args: []string{"true"}}); !errors.Is(err, volant.ErrPrecondition) {
			t.Errorf("exec in a stopped machine: %v", err)
		}
	})
}

func TestWakeIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		cordoned := machine(1, func(m *volant.Machine) { m.Cordoned = true })
		off := machine(2, func(m *volant.Machine) { m.Run = volant.RunOff })
		r.SetWishes([]volant.Machine{cordoned, off})
		for id, want := range map[volant.MachineID]error{
			idOf(cordoned):   volant.ErrPrecondition,
			idOf(off):        volant.ErrPrecondition,
			"0000000000ffff": volant.ErrNotFound,
		} {
			if err := r.Wake(t.Context(), id, "a connection"); !errors.Is(err, want) {
				t.Errorf("machine %s: %v, want %v", id, err, want)
			}
		}
	})
}

func TestWakesJoin(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		m := machine(1)
		r.SetWishes([]volant.Machine{m})
		r.settle()
		errs := make(chan error, 20)
		for range cap(errs) {
			go func() { errs <- r.Wake(t.Context(), idOf(m), "a connection") }()
		}
		for range cap(errs) {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if v := r.await(idOf(m), volant.StateStarted); v.Boots != 1 {
			t.Errorf("%d boots", v.Boots)
		}
	})
}

func TestDestroyWhileItBoots(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.fakes.Latency.Boot = time.Hour
		r.start()
		m := machine(1)
		r.SetWishes([]volant.Machine{m})
		r.settle()
		r.wake(idOf(m))
		time.Sleep(time.Second)
		begun := time.Now()
		r.SetWishes([]volant.Machine{changed(m, func(m *volant.Machine) { m.Run = volant.RunDestroyed })})
		r.await(idOf(m), volant.StateDestroyed)
		if took := time.Since(begun); took > time.Second {
			t.Errorf("it took %v", took)
		}
		if got := r.links.all(); slices.Contains(got, idOf(m)) {
			t.Error("its link is left")
		}
	})
}

// A life is one guest: it is kept over a suspend, and another one after a boot; a guest that is gone has none.
func TestLifeTellsGuestsApart(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		_, id := awakeRig(t, r)
		first := r.have(id).Life
		if first == 0 {
			t.Fatal("an awake machine has no life")
		}
		for range 2 {
			r.suspend(id)
			if got := r.have(id).Life; got != first {
				t.Errorf("asleep it is %d, awake it was %d", got, first)
			}
			r.stop()
			r.start()
			r.wake(id)
			if v := r.await(id, volant.StateStarted); v.Life != first {
				t.Errorf("restored it is %d, before it was %d", v.Life, first)
			}
		}
		r.world.Die(string(id), microvm.VMExit{Signal: 9})
		r.settle()
		second := r.await(id, volant.StateStarted).Life
		if second == 0 || second == first {
			t.Errorf("after its VM died it is %d, before it was %d", second, first)
		}
		if err := r.Sleep(t.Context(), id, host.Sleep{How: host.AskStop, Force: true}); err != nil {
			t.Fatal(err)
		}
		if v := r.await(id, volant.StateStopped); v.Life != 0 {
			t.Errorf("stopped it is %d, want 0", v.Life)
		}
	})
}

// The tombstone that follows a destroyed machine's end makes no record of it again.
func TestTombstoneLeavesNoRecord(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		m, id := awakeRig(t, r)
		m = changed(m, func(m *volant.Machine) { m.Run = volant.RunDestroyed })
		r.SetWishes([]volant.Machine{m})
		r.await(id, volant.StateDestroyed)
		r.SetWishes([]volant.Machine{changed(m, func(m *volant.Machine) { m.Tombstone = true })})
		r.settle()
		left, err := filepath.Glob(filepath.Join(r.cfg.Dir, "journal", "machines", "*"))
		if err != nil || len(left) > 0 {
			t.Errorf("left are %v (%v)", left, err)
		}
	})
}

// A command that runs beside the app keeps its machine awake, as a connection does.
func TestARunningCommandKeepsItsMachineAwake(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		end := make(chan struct{})
		r.fakes.Exec = func(context.Context, *fake.Guest, guest.Exec) (guest.Exit, error) {
			<-end
			return guest.Exit{Code: 7}, nil
		}
		_, id := awakeRig(t, r)
		ran := make(chan error, 1)
		go func() {
			e, err := r.Exec(t.Context(), id, guest.Exec{Args: []string{"sh"}})
			if err == nil && e.Code != 7 {
				err = fmt.Errorf("exit code %d", e.Code)
			}
			ran <- err
		}()
		synctest.Wait()
		r.SetSlots(id, 0)
		if err := r.Drain(t.Context(), id, host.Drain{On: true, Then: host.AskSuspend}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		if v := r.have(id); v.State != volant.StateStarted {
			t.Errorf("while the command runs it is %s: %s", v.State, v.Reason)
		}
		close(end)
		if err := <-ran; err != nil {
			t.Error(err)
		}
		r.await(id, volant.StateSuspended)
	})
}

func TestChecksGateReadiness(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.disks.listen(false)
		m, id := awakeRig(t, r, func(m *volant.Machine) {
			m.Config.Services[0].Checks = []volant.ServiceCheck{{
				Type: "tcp", Interval: volant.Duration(10 * time.Second), Grace: volant.Duration(5 * time.Second),
			}}
		})
		v := r.have(id)
		if v.Ready || len(v.Checks) != 1 || v.Checks[0].Status != volant.CheckWarning || v.Checks[0].Name != m.Config.Services[0].CheckName(0, 0) {
			t.Errorf("in the grace period: %+v", v)
		}
		time.Sleep(6 * time.Second)
		if v = r.have(id); v.Ready || v.Checks[0].Status != volant.CheckCritical {
			t.Errorf("after it: %+v", v)
		}
		r.disks.listen(true)
		time.Sleep(300 * time.Millisecond)
		synctest.Wait()
		if v = r.have(id); !v.Ready || v.Checks[0].Status != volant.CheckPassing {
			t.Errorf("listening: %+v", v)
		}
		r.disks.listen(false)
		time.Sleep(11 * time.Second)
		if v = r.have(id); !v.Ready || v.Checks[0].Status != volant.CheckCritical {
			t.Errorf("not listening any more: %+v", v)
		}
		r.suspend(id)
		if v = r.have(id); v.Ready || len(v.Checks) != 0 {
			t.Errorf("asleep: %+v", v)
		}
	})
}

// The later of image, config, secrets and platform wins. A file is in the guest when its app starts.
func TestSecretsAndFilesComeIntoTheGuest(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		app := host.App{
			Name: "shop", PrimaryRegion: "fra",
			Secrets: map[string]string{"B": "secret", "C": "secret", "FLY_REGION": "mars", "KEY": "a2V5"},
		}
		r.app = func(volant.AppID) (host.App, error) { return app, nil }
		m, id := awakeRig(t, r, func(m *volant.Machine) {
			m.Config.Env = map[string]string{"A": "config", "C": "config"}
			m.Config.Files = []volant.File{{GuestPath: "/etc/raw", RawValue: "cmF3"}, {GuestPath: "/etc/key", SecretName: "KEY", Mode: 0o400}}
		})
		told := func(want map[string]string) {
			t.Helper()
			c := r.world.Guest(string(id)).Config()
			for k, want := range want {
				if got := c.Env[k]; got != want {
					t.Errorf("%s is %q, want %q", k, got, want)
				}
			}
		}
		told(map[string]string{
			"A": "config", "B": "secret", "C": "secret", "FLY_REGION": "ams", "FLY_APP_NAME": "shop",
			"PRIMARY_REGION": "fra", "FLY_PROCESS_GROUP": "app", "FLY_MACHINE_VERSION": m.Version,
		})
		want := map[string]guest.File{
			"/etc/raw": {Path: "/etc/raw", Mode: 0o644, Data: []byte("raw")},
			"/etc/key": {Path: "/etc/key", Mode: 0o400, Data: []byte("key")},
		}
		if got := r.world.Guest(string(id)).Files(); !cmp.Equal(got, want) {
			t.Error(cmp.Diff(want, got))
		}
		app.Secrets = map[string]string{"B": "newer", "KEY": "bmV3"}
		r.suspend(id)
		r.wake(id)
		r.await(id, volant.StateStarted)
		told(map[string]string{"B": "secret"})
		if err := r.Sleep(t.Context(), id, host.Sleep{How: host.AskStop, Force: true}); err != nil {
			t.Fatal(err)
		}
		r.wake(id)
		r.await(id, volant.StateStarted)
		told(map[string]string{"A": "config", "B": "newer", "C": "config"})
		if got := string(r.world.Guest(string(id)).Files()["/etc/key"].Data); got != "new" {
			t.Errorf("the file of the newer secret has %q", got)
		}
	})
}

func TestASecretThatIsMissingKeepsAMachineFromBooting(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		m := machine(1, func(m *volant.Machine) {
			m.Config.Files = []volant.File{{GuestPath: "/etc/key", SecretName: "KEY"}}
		})
		r.SetWishes([]volant.Machine{m})
		r.wake(idOf(m))
		v := r.await(idOf(m), volant.StateFailed)
		if !strings.Contains(v.Reason, "app_1 has no secret KEY") {
			t.Errorf("it failed since: %s", v.Reason)
		}
	})
}

func TestGuestIsTold(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		_, id := awakeRig(t, r, func(m *volant.Machine) {
			m.Config.Env = map[string]string{"B": "config", "FLY_REGION": "moon"}
			m.Config.Init.Cmd = []string{"-v"}
		})
		c := r.world.Guest(string(id)).Config()
		for k, want := range map[string]string{
			"A": "image", "B": "config", "FLY_REGION": "ams", "VOLANT_REGION": "ams", "FLY_MACHINE_ID": string(id),
			"FLY_APP_NAME": "app_1", "FLY_VM_MEMORY_MB": "512",
		} {
			if got := c.Env[k]; got != want {
				t.Errorf("%s is %q, want %q", k, got, want)
			}
		}
		if !slices.Equal(c.Args, []string{"/app", "-v"}) || c.Hostname != string(id) || !c.Scratch || !c.Net.Addr.IsValid() {
			t.Errorf("got %+v", c)
		}
	})
}

func TestLogsOfDestroyedMachinesAreKeptForAWhile(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.cfg.OldLogs = 64 << 10
		r.start()
		var ids []volant.MachineID
		for n := range 4 {
			m := machine(n + 1)
			id := volant.MachineID(m.ID)
			ids = append(ids, id)
			r.SetWishes([]volant.Machine{m})
			r.settle()
			r.wake(id)
			r.await(id, volant.StateStarted)
			r.world.Guest(string(id)).Log("stdout", "last words of "+string(id))
			if n < 2 { // more than is kept of all
				r.world.Guest(string(id)).Log("stdout", strings.Repeat("x", 40<<10))
			}
			time.Sleep(time.Second)
			m.Generation++
			m.Run = volant.RunDestroyed
			r.SetWishes([]volant.Machine{m})
			r.settle()
			if n < 2 {
				continue
			}
			if got := logTexts(t, r, id, 1); !slices.Equal(got, []string{"last words of " + string(id)}) {
				t.Errorf("after its end: %.100q", got)
			}
		}
		app := machine(1).App
		if got := r.OldLogs(app); !slices.Contains(got, ids[3]) || slices.Contains(got, ids[0]) {
			t.Errorf("kept %v of %v: the newest stay, within the bound", got, ids)
		}
		r.stop()
		time.Sleep(8 * 24 * time.Hour)
		old := filepath.Join(r.dir, "oldlogs", string(app))
		for _, id := range r.OldLogs(app) { // files have the true time, the test has not
			then := time.Now().Add(-8 * 24 * time.Hour)
			if err := os.Chtimes(filepath.Join(old, string(id)), then, then); err != nil {
				t.Fatal(err)
			}
		}
		r.start()
		if got := r.OldLogs(app); len(got) != 0 {
			t.Errorf("after a week: %v", got)
		}
		if err := r.Logs(t.Context(), ids[3], 1, false, func(host.LogLine) error { return nil }); !errors.Is(err, volant.ErrNotFound) {
			t.Errorf("the log of a machine that was forgotten: %v, want not found", err)
		}
		if _, err := os.Stat(old); err == nil {
			t.Error("the app's empty directory stays")
		}
	})
}
