package host

import (
	"crypto/rand"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/guest"
)

const defaultStopTimeout = 10 * time.Second

// entropy is fresh random data for a guest.
func entropy() []byte {
	b := make([]byte, 64)
	rand.Read(b) // never fails since Go 1.24
	return b
}

// guestConfig is what a machine's guest is told, but for files.
func guestConfig(w *volant.Machine, root Rootfs, link Link, app App) guest.Config {
	c := guest.Config{
		Hostname: w.ID, Now: time.Now(), Entropy: entropy(), RootFS: root.Type, Scratch: true, Net: link.Net,
		Args: arguments(w.Config.Init, root), Env: environment(w, root, link, app),
		User: root.User, WorkDir: root.WorkDir,
		Hosts: map[string]string{},
	}
	if u := w.Config.Init.User; u != "" {
		c.User = u
	}
	if ip := link.Net.Addr6.Addr(); ip.IsValid() {
		c.Hosts["fly-local-6pn"] = ip.String()
	}
	return c
}

// arguments is the command to run: exec replaces all; entrypoint and cmd replace the image's own.
func arguments(i volant.Init, root Rootfs) []string {
	if len(i.Exec) > 0 {
		return i.Exec
	}
	entry, cmd := root.Entrypoint, root.Cmd
	if len(i.Entrypoint) > 0 {
		entry = i.Entrypoint
	}
	if len(i.Cmd) > 0 {
		cmd = i.Cmd
	}
	return append(append([]string(nil), entry...), cmd...)
}

// environment is the image's, under the config's, under the app's secrets, under the platform's. Fly's names and
// ours are equal.
func environment(w *volant.Machine, root Rootfs, link Link, app App) map[string]string {
	env := map[string]string{}
	for _, kv := range root.Env {
		if k, v, ok := strings.Cut(kv, "="); ok && k != "" {
			env[k] = v
		}
	}
	env["PRIMARY_REGION"] = string(app.PrimaryRegion) // which a config may name otherwise
	maps.Copy(env, w.Config.Env)
	maps.Copy(env, secretsOf(w, app))
	g := w.Config.Guest.WithDefaults()
	own := map[string]string{
		"APP_NAME":        app.Name,
		"MACHINE_ID":      w.ID,
		"ALLOC_ID":        w.ID,
		"MACHINE_VERSION": w.Version,
		"REGION":          string(w.Region),
		"IMAGE_REF":       w.Config.Image,
		"VM_MEMORY_MB":    strconv.Itoa(g.MemoryMB),
		"PROCESS_GROUP":   w.Config.Group(),
	}
	if ip := link.Net.Addr6.Addr(); ip.IsValid() {
		own["PRIVATE_IP"] = ip.String()
	}
	for k, v := range own {
		if v != "" {
			env["FLY_"+k], env["VOLANT_"+k] = v, v
		}
	}
	return env
}

var signals = map[string]int{
	"SIGHUP": 1, "SIGINT": 2, "SIGQUIT": 3, "SIGKILL": 9, "SIGUSR1": 10, "SIGUSR2": 12, "SIGTERM": 15, "SIGWINCH": 28,
}

// ParseSignal reads a signal's name, with or without SIG, or its number.
func ParseSignal(s string) (int, error) {
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n < 65 {
		return n, nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if n, ok := signals[name]; ok {
		return n, nil
	}
	return 0, volant.Invalidf("signal %q is not known: use SIGINT, SIGTERM, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGKILL or a number", s)
}

// stopSignal is the config's, else the image's, else SIGINT.
func stopSignal(config, image string) int {
	for _, s := range []string{config, image} {
		if n, err := ParseSignal(s); s != "" && err == nil {
			return n
		}
	}
	return signals["SIGINT"]
}

func exitText(e *volant.Exit) string {
	switch {
	case e.OOM:
		return "out of memory"
	case e.Signal != 0:
		return fmt.Sprintf("signal %d", e.Signal)
	}
	return fmt.Sprintf("exit code %d", e.Code)
}
