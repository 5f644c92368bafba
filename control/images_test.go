package control_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/client"
	"github.com/volant-edge/volant/volanttest"
)

func TestAReferenceIsPinnedByItsDigest(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		ctx := context.Background()
		d, err := p.API.Resolve(ctx, api.ResolveImage{Image: volanttest.ImageRef, Auth: &api.RegistryAuth{Username: "ann"}}, nil)
		if err != nil || d != volanttest.Image {
			t.Fatalf("resolve: %v, %v, want %v", d, err, volanttest.Image)
		}
		_, r := p.Deploy("web", "", func(r *api.CreateRelease) { r.Image = volanttest.ImageRef })
		if r.Image != string(volanttest.Image) || r.Status != "complete" {
			t.Errorf("the release is %+v, want it complete with image %s", r, volanttest.Image)
		}
		_, again := p.Deploy("web", "", func(r *api.CreateRelease) { r.Image, r.Config.Image = "", volanttest.ImageRef })
		if again.Image != string(volanttest.Image) {
			t.Errorf("config.image alone: %+v", again)
		}
		m, err := p.API.CreateMachine(ctx, "web", api.CreateMachine{Config: volant.MachineConfig{Image: volanttest.ImageRef}})
		if err != nil {
			t.Fatal(err)
		}
		want := api.ImageRef{Registry: "registry.test", Repository: "web", Tag: "1", Digest: string(volanttest.Image)}
		if m.ImageRef != want || m.Config.Image != volanttest.ImageRef {
			t.Errorf("image_ref is %+v with config.image %q, want %+v", m.ImageRef, m.Config.Image, want)
		}
	})
}

func TestReferencesThatDoNotWork(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		if _, err := p.API.CreateApp(context.Background(), "web", ""); err != nil {
			t.Fatal(err)
		}
		for ref, want := range map[string]error{
			"":                         volant.ErrInvalid,
			"oci-archive:image.tar":    volant.ErrInvalid,
			"docker-archive:image.tar": volant.ErrInvalid,
			"Not A Name":               volant.ErrInvalid,
			"registry.test/web:gone":   volant.ErrNotFound,
			"sha256:" + zeroes[:]:      volant.ErrNotFound,
		} {
			_, err := p.API.CreateMachine(context.Background(), "web", api.CreateMachine{Config: volant.MachineConfig{Image: ref}})
			var e *volant.Error
			if !errors.Is(err, want) || !errors.As(err, &e) || e.Remedy == "" {
				t.Errorf("machine of %q: %v, want %v with a remedy", ref, err, want)
			}
			if strings.HasPrefix(ref, "sha256:") {
				continue
			}
			if _, err := p.API.Resolve(context.Background(), api.ResolveImage{Image: ref}, nil); !errors.Is(err, want) {
				t.Errorf("resolve %q: %v, want %v", ref, err, want)
			}
		}
		reader := token(t, p, volant.OrgPersonal, time.Time{}, "read")
		if code, _ := call(t, p, reader, http.MethodPost, "/v1/images/resolve", `{"image":"registry.test/web:1"}`); code != http.StatusForbidden {
			t.Errorf("a reader resolves: %d, want 403", code)
		}
		other := token(t, p, "other", time.Time{}, "deploy")
		if code, _ := call(t, p, other, http.MethodPost, "/v1/images/resolve", `{"image":"registry.test/web:1","org_slug":"personal"}`); code != http.StatusForbidden {
			t.Errorf("another organization's image is resolved: %d, want 403", code)
		}
		c := client.NewTransport("http://test", other, p.Transport())
		if d, err := c.Resolve(context.Background(), api.ResolveImage{Image: volanttest.ImageRef}, nil); err != nil || d != volanttest.Image {
			t.Errorf("resolve for one's own organization: %v, %v", d, err)
		}
	})
}

const zeroes = "0000000000000000000000000000000000000000000000000000000000000000"

// The password of a registry is in no answer and in no record.
func TestPasswordsAreNotKept(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		_, err := p.API.Resolve(context.Background(), api.ResolveImage{
			Image: "registry.test/gone:1", Auth: &api.RegistryAuth{Username: "ann", Password: "the-password"},
		}, nil)
		if err == nil || strings.Contains(err.Error(), "the-password") {
			t.Errorf("error %v", err)
		}
		entries, _, err := p.Store.List(context.Background(), "")
		if err != nil {
			t.Fatal(err)
		}
		all, err := json.Marshal(entries)
		if err != nil || strings.Contains(string(all), "the-password") {
			t.Errorf("a record has the password (%v)", err)
		}
	})
}
