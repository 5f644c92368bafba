package catalog_test

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/local"
	"github.com/volant-edge/volant/store/storetest"
)

// run starts a catalog behind a store and returns it; it ends with the test.
func run(t *testing.T, r store.Reader) *catalog.Catalog {
	t.Helper()
	c := catalog.New(catalog.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx, r) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	synctest.Wait()
	return c
}

func meta(app, id string) volant.Meta { return volant.Meta{Org: "o", App: volant.AppID(app), ID: id} }

func create(t *testing.T, s store.Store, recs ...volant.Record) {
	t.Helper()
	for _, rec := range recs {
		if _, err := store.Create(t.Context(), s, "test", rec); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Wait()
}

func machine(app, id, node string) *volant.Machine {
	return &volant.Machine{Meta: meta(app, id), Node: volant.NodeID(node), Run: volant.RunAuto}
}

func have(id string, epoch, seq uint64, state volant.State) volant.Have {
	return volant.Have{Machine: volant.MachineID(id), App: "a", Node: "n1", Epoch: epoch, Seq: seq, State: state}
}

func TestLookups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.New()
		c := run(t, s)
		app := &volant.App{Meta: meta("a", "a"), Name: "web"}
		create(t, s, app,
			&volant.Release{Meta: meta("a", "1"), Version: 1}, &volant.Release{Meta: meta("a", "2"), Version: 2},
			machine("a", "m1", "n1"), machine("a", "m2", "n2"), machine("b", "m3", "n1"),
			&volant.Node{Meta: meta("", "n1"), Name: "one"}, &volant.Org{Meta: meta("", "o")},
			&volant.Token{Meta: meta("", "t1"), Hash: "h1"},
			&volant.Address{Meta: meta("", "127.77.0.1"), Owner: "a", IP: "127.77.0.1"})
		snap := c.Snapshot()
		if a, ok := snap.AppByName("web"); !ok || a.ID != "a" {
			t.Errorf("app by name: %v %v", a, ok)
		}
		if _, ok := snap.App("b"); ok {
			t.Error("app without a record was found")
		}
		if m, ok := snap.Machine("m3"); !ok || m.App != "b" {
			t.Errorf("machine of an app without a record: %v %v", m, ok)
		}
		var on []string
		for m := range snap.MachinesOn("n1") {
			on = append(on, m.ID)
		}
		slices.Sort(on)
		got := fmt.Sprint(slices.Sorted(maps.Keys(snap.Machines("a"))), slices.Sorted(maps.Keys(snap.Releases("a"))), on)
		if want := "[m1 m2] [1 2] [m1 m3]"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if ad, ok := snap.Address("127.77.0.1"); !ok || ad.Owner != "a" || len(snap.Addresses("a")) != 1 {
			t.Errorf("address: %v %v", ad, ok)
		}
		if n, ok := snap.Node("n1"); !ok || n.Name != "one" {
			t.Errorf("node: %v", n)
		}

		// What a snapshot says never changes.
		if _, _, err := store.Update(t.Context(), s, "x", app.Key(), func(a *volant.App) error { a.Name = "shop"; return nil }); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Delete(t.Context(), s, "x", store.Key[volant.Machine]("a", "m1")); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Delete(t.Context(), s, "x", store.Key[volant.Address]("", "127.77.0.1")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if _, ok := snap.AppByName("shop"); ok || snap.Machines("a")["m1"].Tombstone || len(snap.Addresses("a")) != 1 {
			t.Error("an old snapshot changed")
		}
		snap = c.Snapshot()
		if _, ok := snap.AppByName("web"); ok {
			t.Error("an app is found by its old name")
		}
		if m, ok := snap.Machine("m1"); !ok || !m.Tombstone || m.Run != volant.RunDestroyed {
			t.Errorf("destroyed machine: %+v %v", m, ok)
		}
		if len(snap.Addresses("a")) != 0 {
			t.Error("an address that was taken away is still the app's")
		}
	})
}

func TestMachinesOfAReleaseShareTheirConfig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.New()
		c := run(t, s)
		of := func(id string, release uint64, port string) *volant.Machine {
			m := machine("a", id, "n1")
			m.Release, m.Config.Env = release, map[string]string{"PORT": port}
			return m
		}
		create(t, s, of("m1", 1, "80"), of("m2", 1, "80"), of("m3", 1, "81"), of("m4", 2, "80"))
		env := func(id volant.MachineID) uintptr {
			m, _ := c.Snapshot().Machine(id)
			return reflect.ValueOf(m.Config.Env).Pointer()
		}
		if env("m1") != env("m2") {
			t.Error("equal configs are kept twice")
		}
		if m, _ := c.Snapshot().Machine("m3"); env("m3") == env("m1") || m.Config.Env["PORT"] != "81" {
			t.Error("another config was taken for an equal one")
		}
	})
}

func TestTokenSecretChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.New()
		c := run(t, s)
		tok := &volant.Token{Meta: meta("", "t1"), Hash: "old"}
		create(t, s, tok)
		if _, _, err := store.Update(t.Context(), s, "x", tok.Key(), func(k *volant.Token) error { k.Hash = "new"; return nil }); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		_, old := c.Snapshot().TokenByHash("old")
		_, now := c.Snapshot().TokenByHash("new")
		if old || !now {
			t.Errorf("old secret found: %v, new: %v", old, now)
		}
	})
}

func TestHavesAreOrdered(t *testing.T) {
	c := catalog.New(catalog.Config{})
	for _, tt := range []struct {
		have volant.Have
		want volant.State
	}{
		{have("m", 1, 5, volant.StateStarting), volant.StateStarting},
		{have("m", 1, 6, volant.StateStarted), volant.StateStarted},
		{have("m", 1, 6, volant.StateStopped), volant.StateStarted}, // the same again
		{have("m", 1, 4, volant.StateStopped), volant.StateStarted}, // late
		{have("m", 2, 1, volant.StateStopped), volant.StateStopped}, // the host restarted
		{have("m", 1, 9, volant.StateStarted), volant.StateStopped}, // from before the restart
	} {
		c.SetHave(tt.have)
		if got, ok := c.Snapshot().Have("m"); !ok || got.State != tt.want {
			t.Errorf("after epoch %d seq %d: %s, want %s", tt.have.Epoch, tt.have.Seq, got.State, tt.want)
		}
	}
	if n := len(c.Alarms()); n != 0 {
		t.Errorf("%d alarms", n)
	}
	c.Apply([]store.Entry{record(t, machine("a", "m", "n1"), 1)}, store.Revision{Epoch: 1, Rev: 1})
	other := have("m", 9, 9, volant.StateStarted)
	other.Node = "n2"
	c.SetHave(other)
	if got, _ := c.Snapshot().Have("m"); got.State != volant.StateStopped || len(c.Alarms()) != 1 {
		t.Errorf("a node which is not the machine's host was believed: %+v, %v", got, c.Alarms())
	}
}

// record is a record as the store has it.
func record(t testing.TB, rec volant.Record, rev uint64) store.Entry {
	t.Helper()
	s := storetest.New()
	if _, err := store.Create(t.Context(), s, "test", rec); err != nil {
		t.Fatal(err)
	}
	e, err := s.Get(t.Context(), rec.Head().Key())
	if err != nil {
		t.Fatal(err)
	}
	e.Mod = store.Revision{Epoch: 1, Rev: rev}
	return e
}

func TestOlderRecordsAreNotTaken(t *testing.T) {
	c := catalog.New(catalog.Config{})
	e := record(t, &volant.App{Meta: meta("a", "a"), Name: "new"}, 7)
	c.Apply([]store.Entry{e}, e.Mod)
	for _, rev := range []store.Revision{{Epoch: 1, Rev: 6}, {Epoch: 1, Rev: 7}, {Epoch: 0, Rev: 99}} {
		old := record(t, &volant.App{Meta: meta("a", "a"), Name: "old"}, 0)
		old.Mod = rev
		c.Apply([]store.Entry{old}, rev)
		if a, _ := c.Snapshot().App("a"); a.Name != "new" || c.Snapshot().Rev != e.Mod {
			t.Errorf("record of %s replaced one of %s", rev, e.Mod)
		}
	}
}

func TestBadRecordIsRefusedAndTheLoopGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.New()
		c := run(t, s)
		app := &volant.App{Meta: meta("a", "a"), Name: "web"}
		create(t, s, app)
		for name, bytes := range map[string]string{
			"no JSON":    "{",
			"newer":      `{"kind":"app","schema":2,"id":"a","app":"a","name":7}`,
			"wrong type": `{"kind":"app","schema":1,"id":"a","app":"a","name":7}`,
			"wrong key":  `{"kind":"app","schema":1,"id":"b","app":"b","name":"x"}`,
			"null":       `null`,
		} {
			s.Corrupt(app.Key(), []byte(bytes))
			synctest.Wait()
			if a, ok := c.Snapshot().AppByName("web"); !ok || a.ID != "a" {
				t.Errorf("%s: the record before it is gone", name)
			}
			if got := c.Alarms(); len(got) != 1 || got[0].Key != app.Key() || !strings.Contains(got[0].Text, app.Key()) {
				t.Errorf("%s: alarms %+v", name, got)
			}
		}
		create(t, s, &volant.App{Meta: meta("b", "b"), Name: "other"})
		if _, ok := c.Snapshot().AppByName("other"); !ok {
			t.Error("the loop stopped")
		}
		good := record(t, &volant.App{Meta: meta("a", "a"), Name: "mended"}, 0)
		s.Corrupt(app.Key(), good.Value)
		synctest.Wait()
		if _, ok := c.Snapshot().AppByName("mended"); !ok || len(c.Alarms()) != 0 {
			t.Errorf("after it was mended: alarms %+v", c.Alarms())
		}
	})
}

func TestAbsenceIsNoOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.New()
		c := run(t, s)
		create(t, s, machine("a", "alive", "n1"), machine("a", "dead", "n1"))
		if _, err := store.Delete(t.Context(), s, "x", store.Key[volant.Machine]("a", "dead")); err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"alive", "dead"} {
			e, err := s.Get(t.Context(), store.Key[volant.Machine]("a", id))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Commit(t.Context(), store.Op{Verb: store.Erase, Key: e.Key, Expect: e.Mod}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if _, ok := c.Snapshot().Machine("alive"); !ok {
			t.Error("a live record which the store lost is gone")
		}
		if _, ok := c.Snapshot().Machine("dead"); ok {
			t.Error("a swept tombstone is still there")
		}
	})
}

func TestSubscriptionsCoalesce(t *testing.T) {
	c := catalog.New(catalog.Config{})
	plain, end := c.Subscribe()
	defer end()
	sub := c.Changes()
	defer sub.Close()
	for i := range 10 {
		h := have(fmt.Sprint("m", i), 1, 1, volant.StateStarted)
		h.App = volant.AppID(fmt.Sprint("app", i%2))
		c.SetHave(h)
	}
	if len(plain) != 1 || len(sub.C) != 1 {
		t.Errorf("%d and %d signals wait, want 1", len(plain), len(sub.C))
	}
	<-sub.C
	snap, changed := sub.Take()
	if _, ok := snap.Have("m9"); !ok || !maps.Equal(changed, map[volant.AppID]bool{"app0": true, "app1": true}) {
		t.Errorf("took %v", changed)
	}
	c.SetHave(have("m9", 1, 1, volant.StateStopped)) // nothing new
	if len(sub.C) != 0 {
		t.Error("woken for nothing")
	}
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.New()
		c := run(t, s)
		rev, err := store.Create(t.Context(), s, "x", &volant.App{Meta: meta("a", "a"), Name: "web"})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Wait(t.Context(), rev); err != nil {
			t.Fatal(err)
		}
		if _, ok := c.Snapshot().AppByName("web"); !ok {
			t.Error("waited for nothing")
		}
		rev.Rev += 100
		if err := c.Wait(t.Context(), rev); err == nil {
			t.Error("waiting for the future: no error")
		}
	})
}

// The whole way: store, copy on disk, catalog; the store goes down, and comes back under another epoch.
func TestBehindTheCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.New()
		create(t, s, &volant.App{Meta: meta("a", "a"), Name: "web"})
		path := filepath.Join(t.TempDir(), "c")
		copied, err := local.Open(local.Config{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		defer copied.Close() // the test is over
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- copied.Run(ctx, s) }()
		c := run(t, copied)
		synctest.Wait()
		if _, ok := c.Snapshot().AppByName("web"); !ok {
			t.Fatal("nothing came through the copy")
		}
		s.SetDown(true)
		time.Sleep(time.Hour)
		if _, ok := c.Snapshot().AppByName("web"); !ok {
			t.Error("gone with the store")
		}
		cancel()
		<-done
		restored := storetest.New()
		if _, err := restored.Seed(t.Context(), 2, []store.Entry{record(t, &volant.App{Meta: meta("a", "a"), Name: "restored"}, 1)}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel = context.WithCancel(t.Context())
		go func() { done <- copied.Run(ctx, restored) }()
		synctest.Wait()
		if _, ok := c.Snapshot().AppByName("restored"); !ok || c.Snapshot().Rev.Epoch != 2 {
			t.Errorf("after a restore at %s: %s", c.Snapshot().Rev, cmp.Diff("restored", ""))
		}
		cancel()
		<-done
	})
}

// fleet is a catalog with n machines in apps of ten.
func fleet(b *testing.B, n int) *catalog.Catalog {
	b.Helper()
	c := catalog.New(catalog.Config{})
	one := record(b, machine("APP", "MACHINE", "n1"), 1)
	entries := make([]store.Entry, n)
	haves := make([]volant.Have, n)
	for i := range n {
		app, id := fmt.Sprint("app_", i/10), fmt.Sprintf("%014x", i)
		text := strings.NewReplacer("APP", app, "MACHINE", id).Replace(string(one.Value))
		entries[i] = store.Entry{Key: store.Key[volant.Machine](volant.AppID(app), id), Value: []byte(text), Mod: one.Mod}
		haves[i] = have(id, 1, 1, volant.StateStarted)
		haves[i].App = volant.AppID(app)
	}
	c.Apply(entries, one.Mod)
	c.SetHaves(haves)
	if n := len(c.Alarms()); n > 0 {
		b.Fatal(c.Alarms())
	}
	return c
}

func BenchmarkLoad100k(b *testing.B) {
	for b.Loop() {
		fleet(b, 100_000)
	}
}

func BenchmarkSetHave(b *testing.B) {
	for _, n := range []int{1_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			c := fleet(b, n)
			h := have("", 1, 1, volant.StateStarted)
			ids := make([]volant.MachineID, n)
			for i := range ids {
				ids[i] = volant.MachineID(fmt.Sprintf("%014x", i))
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				h.Seq++
				h.Machine, h.App = ids[i%n], "app_0"
				c.SetHave(h)
				i++
			}
		})
	}
}

func BenchmarkApplyOneOf100k(b *testing.B) {
	c := fleet(b, 100_000)
	e := record(b, machine("app_7", fmt.Sprintf("%014x", 70), "n1"), 1)
	b.ReportAllocs()
	for b.Loop() {
		e.Mod.Rev++
		c.Apply([]store.Entry{e}, e.Mod)
	}
}

func BenchmarkHave(b *testing.B) {
	c := fleet(b, 100_000)
	id := volant.MachineID(fmt.Sprintf("%014x", 777))
	for b.Loop() {
		if _, ok := c.Snapshot().Have(id); !ok {
			b.Fatal("not found")
		}
	}
}

func TestSecretsAndCertificatesOfAnApp(t *testing.T) {
	ctx := t.Context()
	mem := storetest.New()
	c := catalog.New(catalog.Config{})
	take := func(changes ...store.Change) *catalog.Snapshot {
		t.Helper()
		if _, err := store.Apply(ctx, mem, "test", changes...); err != nil {
			t.Fatal(err)
		}
		entries, rev, err := mem.List(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		c.Apply(entries, rev)
		return c.Snapshot()
	}
	secrets := &volant.Secrets{Version: 1}
	secrets.Meta = volant.Meta{Org: "o", App: "app_1", ID: volant.SecretsID}
	cert := &volant.Certificate{Owner: "app_1", Hostname: "*.example.com"}
	cert.Meta = volant.Meta{Org: "o", ID: "*.example.com"}
	shared := &volant.Address{IP: "192.0.2.1", Type: volant.AddressSharedV4}
	shared.Meta = volant.Meta{ID: "192.0.2.1"}
	var changes []store.Change
	for _, app := range []volant.AppID{"app_1", "app_2"} {
		ad := &volant.Address{Owner: app, IP: "192.0.2.1", Type: volant.AddressSharedV4}
		ad.Meta = volant.Meta{Org: "o", ID: volant.SharedID("192.0.2.1", app)}
		changes = append(changes, store.Creation(ad))
	}
	snap := take(append(changes, store.Creation(secrets), store.Creation(cert), store.Creation(shared))...)
	if got, ok := snap.Secrets("app_1"); !ok || got.Version != 1 {
		t.Errorf("secrets are %+v, %v", got, ok)
	}
	if _, ok := snap.Secrets("app_2"); ok {
		t.Error("another app has secrets")
	}
	if got, ok := snap.Certificate("*.example.com"); !ok || len(snap.Certificates("app_1")) != 1 || got.Owner != "app_1" {
		t.Errorf("certificate is %+v, %v; the app has %d", got, ok, len(snap.Certificates("app_1")))
	}
	for _, app := range []volant.AppID{"app_1", "app_2"} {
		if ads := snap.Addresses(app); len(ads) != 1 || ads[0].IP != "192.0.2.1" {
			t.Errorf("app %s has addresses %v, want the shared one", app, ads)
		}
	}
	snap = take(store.Removal(secrets.Key()), store.Removal(cert.Key()), store.Removal("address/-/"+volant.SharedID("192.0.2.1", "app_1")))
	if _, ok := snap.Secrets("app_1"); ok || len(snap.Certificates("app_1")) != 0 || len(snap.Addresses("app_1")) != 0 {
		t.Error("what was removed is still there")
	}
	if len(snap.Addresses("app_2")) != 1 {
		t.Error("another app's shared address went too")
	}
	if got, ok := snap.Certificate("*.example.com"); !ok || !got.Tombstone {
		t.Error("a removed host name's tombstone is not there")
	}
}
