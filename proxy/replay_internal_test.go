package proxy

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseReplay(t *testing.T) {
	for text, want := range map[string]replay{
		"instance=3d8d":                   {instance: "3d8d"},
		"app=api;state=a=b":               {app: "api", state: "a=b"},
		" elsewhere=true ; state=\"a;b\"": {elsewhere: true, state: "a;b"},
		`region="ams,any";prefer_instance=1;app=x`: {
			regions: "ams,any", prefer: "1", app: "x",
		},
	} {
		got, err := parseReplay(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		want.text = text
		if diff := cmp.Diff(want, *got, cmp.AllowUnexported(replay{})); diff != "" {
			t.Errorf("%s: %s", text, diff)
		}
	}
	for _, text := range []string{"", "state=x", "elsewhere=no", "timeout=1s;app=x", "app", "=;"} {
		if got, err := parseReplay(text); err == nil {
			t.Errorf("%q is read as %+v", text, *got)
		}
	}
}

func FuzzParseReplay(f *testing.F) {
	f.Add(`app=a;region="x,y";state="z`)
	f.Add(`;;==";"`)
	f.Fuzz(func(t *testing.T, text string) {
		r, err := parseReplay(text)
		if err == nil && r.app == "" && r.instance == "" && r.prefer == "" && r.regions == "" && !r.elsewhere {
			t.Errorf("%q is a replay to nowhere", text)
		}
	})
}
