const ms=require("ms"), semver=require("semver"); console.log(ms("2 days"), semver.gt("1.2.3","1.2.0"), require("./lib/x").x);
