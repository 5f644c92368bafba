package store_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/storetest"
)

// object reads JSON, with all digits of its numbers.
func object(t *testing.T, b []byte) any {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	return v
}

func TestUpdateKeepsUnknownFields(t *testing.T) {
	const key = "machine/a/m"
	const head = `"kind":"machine","schema":1,"org":"o","app":"a","id":"m"`
	for _, tt := range []struct {
		name   string
		raw    string
		change func(*volant.Machine)
		want   string // of "rest": all but the head
	}{
		{
			"at the top, with every digit", `"name":"x","run":"auto","later":12345678901234567890.10`,
			func(m *volant.Machine) { m.Name = "y" },
			`"name":"y","run":"auto","later":12345678901234567890.10`,
		},
		{
			"in inner objects", `"run":"auto","config":{"guest":{"cpus":1,"gpus":2},"swap":{"mb":1}}`,
			func(m *volant.Machine) { m.Config.Guest.CPUs = 4 },
			`"run":"auto","config":{"guest":{"cpus":4,"gpus":2},"swap":{"mb":1}}`,
		},
		{
			"in an object that was empty to us", `"run":"auto","config":{"init":{"tty":true}}`,
			func(m *volant.Machine) { m.Config.Init.User = "u" },
			`"run":"auto","config":{"init":{"user":"u","tty":true}}`,
		},
		{
			"in an object that becomes empty to us", `"run":"auto","config":{"init":{"user":"u","tty":true}}`,
			func(m *volant.Machine) { m.Config.Init.User = "" },
			`"run":"auto","config":{"init":{"tty":true}}`,
		},
		{
			"but not in what is taken away", `"run":"auto","config":{"services":[{"protocol":"tcp","internal_port":1,"ports":null,"concurrency":{"type":"connections","burst":9}}]}`,
			func(m *volant.Machine) { m.Config.Services[0].Concurrency = nil },
			`"run":"auto","config":{"services":[{"protocol":"tcp","internal_port":1,"ports":null}]}`,
		},
		{
			"keys of maps go as wished", `"run":"auto","config":{"env":{"A":"1","B":"2"},"metadata":{"k":"v"}}`,
			func(m *volant.Machine) { delete(m.Config.Env, "A"); m.Config.Env["C"] = "3"; m.Config.Metadata = nil },
			`"run":"auto","config":{"env":{"B":"2","C":"3"}}`,
		},
		{
			"in a changed element of a list", `"run":"auto","config":{"services":[{"protocol":"tcp","internal_port":1,"ports":null,"x":1},{"protocol":"tcp","internal_port":2,"ports":null,"x":2}]}`,
			func(m *volant.Machine) { m.Config.Services[1].InternalPort = 3 },
			`"run":"auto","config":{"services":[{"protocol":"tcp","internal_port":1,"ports":null,"x":1},{"protocol":"tcp","internal_port":3,"ports":null,"x":2}]}`,
		},
		{
			"in elements which moved", `"run":"auto","config":{"services":[{"protocol":"tcp","internal_port":1,"ports":null,"x":1},{"protocol":"tcp","internal_port":2,"ports":null,"x":2}]}`,
			func(m *volant.Machine) {
				s := m.Config.Services
				m.Config.Services = []volant.Service{s[1], {Protocol: "tcp", InternalPort: 9}, s[0]}
			},
			`"run":"auto","config":{"services":[{"protocol":"tcp","internal_port":2,"ports":null,"x":2},{"protocol":"tcp","internal_port":9,"ports":null},{"protocol":"tcp","internal_port":1,"ports":null,"x":1}]}`,
		},
		{
			"a null stays unknown", `"run":"auto","later":null,"tags":[1,{"a":null}]`,
			func(m *volant.Machine) { m.Run = volant.RunOn },
			`"run":"on","later":null,"tags":[1,{"a":null}]`,
		},
		{
			"a known field is known in any case", `"run":"auto","NAME":"x"`,
			func(m *volant.Machine) { m.Name = "y" },
			`"run":"auto","name":"y"`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := storetest.New()
			if _, err := s.Commit(t.Context(), store.Op{Key: key, Value: []byte("{" + head + "," + tt.raw + "}")}); err != nil {
				t.Fatal(err)
			}
			if _, _, err := store.Update(t.Context(), s, "ann", key, func(m *volant.Machine) error { tt.change(m); return nil }); err != nil {
				t.Fatal(err)
			}
			e, err := s.Get(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			got := object(t, e.Value).(map[string]any)
			if got["generation"] != json.Number("1") || got["actor"] != "ann" {
				t.Errorf("generation %v, actor %v", got["generation"], got["actor"])
			}
			want := object(t, []byte("{"+tt.want+"}")).(map[string]any)
			// What the head and fields without omitempty write is not what this is about.
			for k := range got {
				if _, ok := want[k]; !ok && strings.Contains(" kind schema org app id generation actor created_at updated_at node region image version name config ", " "+k+" ") {
					if m, isMap := got[k].(map[string]any); !isMap || k == "config" && len(m) == 1 {
						delete(got, k)
					}
				}
			}
			dropImage(got)
			dropImage(want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// dropImage leaves out config.image, which is always written.
func dropImage(m map[string]any) {
	if c, ok := m["config"].(map[string]any); ok {
		delete(c, "image")
	}
}

func TestUpdateWritesNothingForNothing(t *testing.T) {
	s := storetest.New()
	app := &volant.App{Meta: volant.Meta{Org: "o", App: "a", ID: "a"}, Name: "web"}
	rev, err := store.Create(t.Context(), s, "ann", app)
	if err != nil {
		t.Fatal(err)
	}
	got, at, err := store.Update(t.Context(), s, "bob", app.Key(), func(a *volant.App) error { a.Name = "web"; return nil })
	if err != nil || at != rev || got.Generation != 1 || got.Actor != "ann" || s.Commits() != 1 {
		t.Errorf("%+v at %s, %v", got, at, err)
	}
	no := errors.New("no")
	if _, _, err := store.Update(t.Context(), s, "bob", app.Key(), func(*volant.App) error { return no }); !errors.Is(err, no) {
		t.Errorf("fn's error: %v", err)
	}
	if _, _, err := store.Update(t.Context(), s, "bob", app.Key(), func(a *volant.App) error { a.ID = "b"; return nil }); !errors.Is(err, volant.ErrInvalid) {
		t.Errorf("renamed: %v", err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	const good = `{"kind":"app","schema":1,"org":"o","app":"a","id":"a","name":"web","new_field":{"x":1}}`
	if a, err := store.Decode[volant.App]("app/a/a", []byte(good)); err != nil || a.Name != "web" {
		t.Fatalf("good record: %v", err)
	}
	for _, tt := range []struct {
		name, key, value string
		want             error
	}{
		{"newer major", "app/a/a", `{"kind":"app","schema":2,"id":"a","app":"a","name":{"first":"x"}}`, volant.ErrPrecondition},
		{"no schema", "app/a/a", `{"kind":"app","id":"a","app":"a"}`, volant.ErrInvalid},
		{"no JSON", "app/a/a", `{"kind":"app",`, volant.ErrInvalid},
		{"more than JSON", "app/a/a", good + "x", volant.ErrInvalid},
		{"a list", "app/a/a", `[]`, volant.ErrInvalid},
		{"wrong type", "app/a/a", `{"kind":"app","schema":1,"id":"a","app":"a","name":1}`, volant.ErrInvalid},
		{"another kind", "app/a/a", `{"kind":"node","schema":1,"id":"a","app":"a"}`, volant.ErrInvalid},
		{"another key", "app/a/b", good, volant.ErrInvalid},
		{"slash in an ID", "app/a/a/b", `{"kind":"app","schema":1,"id":"a/b","app":"a"}`, volant.ErrInvalid},
		{"no ID", "app/a/", `{"kind":"app","schema":1,"app":"a"}`, volant.ErrInvalid},
		{"too long", "app/a/a", `{"x":"` + strings.Repeat("x", store.MaxValue) + `"}`, volant.ErrInvalid},
	} {
		_, err := store.Decode[volant.App](tt.key, []byte(tt.value))
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
		if err != nil && !strings.Contains(err.Error(), tt.key) {
			t.Errorf("%s: %q does not name the record", tt.name, err)
		}
	}
	_, err := store.Decode[volant.App]("app/a/a", []byte(`{"kind":"app","schema":2}`))
	var e *volant.Error
	if !errors.As(err, &e) || e.Remedy == "" {
		t.Errorf("a newer schema without a cure: %v", err)
	}
	// A newer record is not written over either.
	s := storetest.New()
	s.Corrupt("app/a/a", []byte(`{"kind":"app","schema":2,"id":"a","app":"a"}`))
	if _, err := store.Delete(t.Context(), s, "x", "app/a/a"); !errors.Is(err, volant.ErrPrecondition) {
		t.Errorf("delete of a newer record: %v", err)
	}
}

func TestDeleteOfAKindNobodyKnows(t *testing.T) {
	s := storetest.New()
	s.Corrupt("volume/a/v", []byte(`{"kind":"volume","schema":1,"org":"o","app":"a","id":"v","generation":4,"size":{"gb":3}}`))
	if _, err := store.Delete(t.Context(), s, "ann", "volume/a/v"); err != nil {
		t.Fatal(err)
	}
	e, err := s.Get(t.Context(), "volume/a/v")
	if err != nil {
		t.Fatal(err)
	}
	got := object(t, e.Value).(map[string]any)
	if got["tombstone"] != true || got["generation"] != json.Number("5") || !cmp.Equal(got["size"], any(map[string]any{"gb": json.Number("3")})) {
		t.Errorf("got %s", e.Value)
	}
}

func TestClaim(t *testing.T) {
	s := storetest.New()
	name := func(owner volant.AppID) *volant.AppName {
		return &volant.AppName{Meta: volant.Meta{Org: "o", ID: "web"}, Owner: owner}
	}
	if _, err := store.Apply(t.Context(), s, "x", store.Claim(name("a"))); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Apply(t.Context(), s, "x", store.Claim(name("b"))); !errors.Is(err, volant.ErrExists) {
		t.Errorf("claimed twice: %v", err)
	}
	if _, err := store.Delete(t.Context(), s, "x", store.Key[volant.AppName]("", "web")); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Apply(t.Context(), s, "x", store.Claim(name("b"))); err != nil {
		t.Fatal(err)
	}
	got, err := store.Load[volant.AppName](t.Context(), s, store.Key[volant.AppName]("", "web"))
	if err != nil || got.Owner != "b" || got.Generation != 3 {
		t.Errorf("claimed again: %+v, %v", got, err)
	}
}

func TestAllGoesOnBesideABadRecord(t *testing.T) {
	s := storetest.New()
	for _, id := range []string{"a", "b", "c"} {
		if _, err := store.Create(t.Context(), s, "x", &volant.App{Meta: volant.Meta{App: "p", ID: id}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := store.Delete(t.Context(), s, "x", "app/p/c"); err != nil {
		t.Fatal(err)
	}
	s.Corrupt("app/p/a", []byte("x"))
	got, _, err := store.All[volant.App](t.Context(), s, "app/p/")
	if len(got) != 1 || got[0].ID != "b" || !errors.Is(err, volant.ErrInvalid) {
		t.Errorf("got %d, %v", len(got), err)
	}
}

// Whatever stands in the store, an update of it ends; and if it writes, the record reads back as wished,
// at the next generation, and a second reading of what was written changes nothing.
func FuzzUpdate(f *testing.F) {
	const key = "machine/a/m"
	for _, seed := range []string{
		`{"kind":"machine","schema":1,"app":"a","id":"m"}`,
		`{"kind":"machine","schema":1,"app":"a","id":"m","config":{"env":{"A":"1"},"services":[{"ports":[{"port":1,"x":2}],"concurrency":{"q":1}}],"init":{"user":"x","y":[{}]}},"z":1e400}`,
		`{"kind":"machine","schema":1,"app":"a","id":"m","ID":"m","Name":"x","NAME":"y","config":null,"Config":{"image":"i"}}`,
		`{"kind":"machine","schema":1,"app":"a","id":"m","config":{"metadata":{"":null},"stop_config":{"timeout":"5s","later":0}}}`,
		`{"kind":"machine","schema":2}`, `null`, `[]`, `{"kind":1}`, `{"schema":1e9}`,
	} {
		f.Add([]byte(seed), "name", uint8(3))
	}
	f.Add([]byte(`{"kind":"machine","schema":1,"app":"a","id":"m"}`), "\x80", uint8(20))
	f.Fuzz(func(t *testing.T, value []byte, name string, what uint8) {
		name = strings.ToValidUTF8(name, "?") // JSON has no other texts; what comes over the API is valid
		s := storetest.New()
		s.Corrupt(key, value)
		change := func(m *volant.Machine) {
			m.Name = name
			if what&1 != 0 {
				m.Config.Init = volant.Init{}
			}
			if what&2 != 0 {
				m.Config.Services = append([]volant.Service{{Protocol: name}}, m.Config.Services...)
			}
			if what&4 != 0 {
				m.Config.Env = nil
			}
			if what&8 != 0 {
				m.Config = volant.MachineConfig{}
			}
		}
		before, err := store.Decode[volant.Machine](key, value)
		written, rev, err2 := store.Update(t.Context(), s, "fuzz", key, func(m *volant.Machine) error { change(m); return nil })
		if err != nil || before.Tombstone {
			if err2 == nil {
				t.Fatalf("a record which cannot be read (%v) was written", err)
			}
			return
		}
		if err2 != nil {
			if !errors.Is(err2, volant.ErrInvalid) { // too long with what was added
				t.Fatal(err2)
			}
			return
		}
		got, at, err := store.LoadAny[volant.Machine](t.Context(), s, key)
		if err != nil || at != rev {
			t.Fatalf("written record: %v", err)
		}
		a, err := json.Marshal(written)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Fatalf("wished %s\nwritten %s", a, b)
		}
		if s.Commits() == 1 && got.Generation != before.Generation+1 {
			t.Fatalf("generation %d after %d", got.Generation, before.Generation)
		}
	})
}
